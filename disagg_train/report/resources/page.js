// Puts the page together: the theme, the charts, and the controls around the timeline.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

const remembered = {
  get theme() {
    try { return localStorage.getItem("theme"); } catch { return null; }
  },
  set theme(value) {
    try { localStorage.setItem("theme", value); } catch { /* a page opened as a file may have none */ }
  },
};

function startTheme(changed) {
  const button = byId("theme"), system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const refresh = () => {
    button.textContent = isDark() ? "Light colours" : "Dark colours";
    changed();
  };
  if (remembered.theme) root.dataset.theme = remembered.theme;
  button.addEventListener("click", () => {
    root.dataset.theme = remembered.theme = isDark() ? "light" : "dark";
    refresh();
  });
  system.addEventListener("change", refresh);
  refresh();
}

/** A button that is pressed or not, with a swatch. */
function chip(swatches, text, toggled) {
  const marks = swatches.map((name) => element("span", { class: `swatch ${name}`, "aria-hidden": "true" }));
  const button = element("button", { type: "button", "aria-pressed": "true" }, ...marks, text);
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(pressed));
    toggled(pressed);
  });
  return button;
}

function fillChips(timeline) {
  const both = data.modules.length > 1;
  const kinds = {
    forward: [both ? ["forward", "forward-alt"] : ["forward"], both ? "forward (LLM, encoder)" : "forward"],
    backward: [both ? ["backward", "backward-alt"] : ["backward"], both ? "backward (LLM, encoder)" : "backward"],
    boundary: [["boundary"], "transfers"],
    sync: [["sync"], "sync and update"],
  };
  const toggle = (hidden, name) => (pressed) => {
    if (pressed) hidden.delete(name);
    else hidden.add(name);
    timeline.draw();
  };
  for (const [kind, [swatches, text]] of Object.entries(kinds)) {
    byId("kinds").append(chip(swatches, text, toggle(timeline.hiddenKinds, kind)));
  }
  byId("kinds").append(chip([], "→ arrows of messages", (pressed) => {
    timeline.arrows = pressed;
    timeline.draw();
  }));
  byId("kinds").append(element("span", { class: "legend" }, element("span", { class: "swatch idle" }), " idle; above a line: waiting in an op"));
  for (const module of data.modules) byId("modules").append(chip([], module, toggle(timeline.hiddenModules, module)));
}

function fillRanks(step, slowest) {
  const rows = step.data.ranks.map((numbers, row) => {
    const [forward, backward, boundary, sync, idle, heldUp, why] = numbers;
    const cells = [percent(step.busy(row) / step.length), ...[forward, backward, boundary, sync].map(duration),
      `${duration(idle)}, ${percent(idle / step.length)}`, duration(heldUp)];
    const line = element("tr", {}, element("th", { scope: "row" }, step.data.rows[row] + (row === slowest ? " (slowest)" : "")),
      ...cells.map((text) => element("td", {}, text)), element("td", { class: "text" }, why));
    line.classList.toggle("slowest", row === slowest);
    return line;
  });
  byId("rank-table").tBodies[0].replaceChildren(...rows);
}

function fillWaits(step, timeline) {
  byId("waits").replaceChildren(...step.data.waits.map(([index, row, text]) => {
    const name = step.data.rows[row];
    const button = element("button", { type: "button" }, `${name} waited ${duration(step.wait[index])} ${text}`);
    button.addEventListener("click", () => {
      timeline.zoomTo(index);
      timeline.select(index);
      timeline.box.scrollIntoView({ block: "center" });
      timeline.box.focus({ preventScroll: true });
    });
    return element("li", {}, button);
  }));
}

function startTimeline() {
  const select = byId("step");
  const timeline = new Timeline(byId("rows"), byId("tip"), (text) => (byId("selected").textContent = text), data.modules);
  const show = () => {
    const step = new Step(data.steps[select.selectedIndex], data.ops);
    timeline.show(step);
    byId("sentence").textContent = step.data.sentence;
    byId("selected").textContent = "Choose an op by a click, or by the arrow keys.";
    fillRanks(step, timeline.slowest);
    fillWaits(step, timeline);
    byId("previous").disabled = select.selectedIndex === 0;
    byId("next").disabled = select.selectedIndex === data.steps.length - 1;
  };
  const go = (change) => () => {
    select.selectedIndex = clamp(select.selectedIndex + change, 0, data.steps.length - 1);
    show();
  };
  select.append(...data.steps.map((step) => element("option", {}, `${step.number} (${duration(step.length)})`)));
  select.addEventListener("change", show);
  const clicks = {
    previous: go(-1), next: go(1), "zoom-in": () => timeline.zoom(ZOOM), "zoom-out": () => timeline.zoom(1 / ZOOM),
    left: () => timeline.move(-0.25), right: () => timeline.move(0.25), fit: () => timeline.setView(0, timeline.step.length),
  };
  for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
  byId("rank-filter").addEventListener("input", (event) => {
    timeline.wanted = event.target.value.split(",").map((text) => text.trim()).filter(Boolean);
    timeline.arrange();
  });
  byId("order").addEventListener("change", (event) => {
    timeline.order = event.target.value;
    timeline.arrange();
  });
  fillChips(timeline);
  show();
  return timeline;
}

const timeline = data.steps.length ? startTimeline() : null;
startTheme(() => {
  if (!timeline) return;
  timeline.painter.recolour();
  timeline.draw();
});
document.querySelectorAll(".plot").forEach((box) => new CurveChart(box, data.charts[box.dataset.chart]));
