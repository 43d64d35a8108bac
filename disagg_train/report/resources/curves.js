// Line charts as SVG. Each is a slider: the arrow keys and the pointer move a cursor over the steps.
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 52, right: 8, top: 22, bottom: 22 };
const COLOURS = ["var(--forward)", "var(--backward)"];

function svg(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

const digits = (value) => (value === null ? "not finite" : Number(value.toPrecision(4)).toLocaleString("en"));

/** Round numbers between low and high, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}

class CurveChart {
  constructor(box, chart) {
    this.box = box;
    this.chart = chart;
    this.steps = [...new Set(chart.curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
    this.cursor = null;
    this.readout = element("output", { hidden: "" });
    this.announce();
    box.addEventListener("keydown", (event) => this.onKey(event));
    box.addEventListener("pointermove", (event) => this.pointAt(event));
    box.addEventListener("pointerleave", () => this.moveTo(null));
    new ResizeObserver(() => this.draw()).observe(box);
  }

  announce() {
    const attributes = {
      tabindex: 0, role: "slider", "aria-label": `${this.chart.title}, step`,
      "aria-valuemin": this.steps[0], "aria-valuemax": this.steps.at(-1), "aria-valuenow": this.steps.at(-1),
      "aria-valuetext": this.textAt(this.steps.at(-1)),
    };
    for (const [name, value] of Object.entries(attributes)) this.box.setAttribute(name, value);
  }

  scales() {
    const { clientWidth: width, clientHeight: height } = this.box;
    const values = this.chart.curves.flatMap((curve) => curve.values).filter((value) => value !== null);
    let low = this.chart.from_zero ? 0 : Math.min(...values), high = Math.max(...values);
    if (!values.length) [low, high] = [0, 1];
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    const [first, last] = [this.steps[0], Math.max(this.steps.at(-1), this.steps[0] + 1)];
    const across = width - MARGIN.left - MARGIN.right, down = height - MARGIN.top - MARGIN.bottom;
    return {
      width, height, low, high, first, last, across,
      x: (step) => MARGIN.left + ((step - first) / (last - first)) * across,
      y: (value) => MARGIN.top + (1 - (value - low) / (high - low)) * down,
    };
  }

  draw() {
    const at = (this.at = this.scales());
    const root = svg("svg", { "aria-hidden": "true", viewBox: `0 0 ${at.width} ${at.height}` });
    for (const value of ticks(at.low, at.high, 4)) {
      root.append(svg("line", { class: "grid", x1: MARGIN.left, x2: at.width - MARGIN.right, y1: at.y(value), y2: at.y(value) }));
      root.append(svg("text", { x: MARGIN.left - 6, y: at.y(value) + 4, "text-anchor": "end" }, digits(value)));
    }
    for (const step of ticks(at.first, at.last, 5).filter(Number.isInteger)) {
      root.append(svg("text", { x: at.x(step), y: at.height - 4, "text-anchor": "middle" }, step));
    }
    this.chart.curves.forEach((curve, index) => this.drawCurve(root, curve, index));
    this.line = svg("line", { class: "cursor", y1: MARGIN.top, y2: at.height - MARGIN.bottom, visibility: "hidden" });
    root.append(this.line);
    this.box.replaceChildren(root, this.readout);
    this.showCursor();
  }

  drawCurve(root, curve, index) {
    const { x, y } = this.at;
    let path = "", drawing = false;
    curve.steps.forEach((step, point) => {
      const value = curve.values[point];
      if (value !== null) path += `${drawing ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      drawing = value !== null;
    });
    root.append(svg("path", { d: path, style: `stroke: ${COLOURS[index]}` }));
    if (curve.steps.length <= 40) {
      curve.steps.forEach((step, point) => {
        if (curve.values[point] === null) return;
        root.append(svg("circle", { cx: x(step), cy: y(curve.values[point]), r: 3, style: `fill: ${COLOURS[index]}` }));
      });
    }
    if (this.chart.curves.length > 1) {
      const left = MARGIN.left + index * 90;
      root.append(svg("line", { x1: left, x2: left + 14, y1: 10, y2: 10, style: `stroke: ${COLOURS[index]}; stroke-width: 3` }));
      root.append(svg("text", { x: left + 19, y: 14 }, curve.name));
    }
  }

  textAt(step) {
    const parts = this.chart.curves.map((curve) => {
      const point = curve.steps.indexOf(step);
      return point < 0 ? "" : `${curve.name} ${digits(curve.values[point])}`;
    });
    return `step ${step}: ${parts.filter(Boolean).join(", ")}`;
  }

  moveTo(step) {
    this.cursor = step;
    this.showCursor();
    if (step === null) return;
    this.box.setAttribute("aria-valuenow", step);
    this.box.setAttribute("aria-valuetext", this.textAt(step));
  }

  showCursor() {
    this.readout.hidden = this.cursor === null;
    if (!this.line) return;
    this.line.setAttribute("visibility", this.cursor === null ? "hidden" : "visible");
    if (this.cursor === null) return;
    this.readout.textContent = this.textAt(this.cursor);
    this.line.setAttribute("x1", this.at.x(this.cursor));
    this.line.setAttribute("x2", this.at.x(this.cursor));
  }

  pointAt(event) {
    const { first, last, across } = this.at;
    const wanted = first + ((event.clientX - this.box.getBoundingClientRect().left - MARGIN.left) / across) * (last - first);
    let nearest = this.steps[0];
    for (const step of this.steps) if (Math.abs(step - wanted) < Math.abs(nearest - wanted)) nearest = step;
    this.moveTo(nearest);
  }

  onKey(event) {
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") this.moveTo(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    const from = this.cursor === null ? this.steps.length - 1 : this.steps.indexOf(this.cursor);
    this.moveTo(this.steps[clamp(from + moves[event.key], 0, this.steps.length - 1)]);
  }
}
