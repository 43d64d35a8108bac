// Draws the visible part of a step on a canvas: a row per rank, idle time hatched, transfers as arrows.
const RULER = 24;
const MOST_PLAIN_ARROWS = 60;
const LETTER = 6.6;

/** Colours as the style sheet has them at this moment. */
function palette() {
  const probe = document.body.appendChild(element("span", { hidden: "" }));
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = ["surface", "line", "ink", "quiet", "mark", "idle", "idle-line", "forward", "forward-alt",
    "backward", "backward-alt", "boundary", "sync", "on-strong", "on-pale"];
  const found = Object.fromEntries(names.map((name) => [name, colour(name)]));
  probe.remove();
  return found;
}

function hatch(context, colours) {
  const tile = new OffscreenCanvas(8, 8), on = tile.getContext("2d");
  on.fillStyle = colours.idle;
  on.fillRect(0, 0, 8, 8);
  on.strokeStyle = colours["idle-line"];
  on.beginPath();
  for (const shift of [-8, 0, 8]) {
    on.moveTo(shift, 8);
    on.lineTo(shift + 8, 0);
  }
  on.stroke();
  return context.createPattern(tile, "repeat");
}

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.recolour();
  }

  recolour() {
    this.colours = palette();
    this.pattern = hatch(this.context, this.colours);
  }

  /** Draw a view; returns how many ops and arrows came to stand in it. */
  draw(view) {
    const { context, canvas } = this, ratio = window.devicePixelRatio || 1;
    this.view = view;
    canvas.width = Math.round(view.width * ratio);
    canvas.height = Math.round(view.height * ratio);
    canvas.style.width = `${view.width}px`;
    canvas.style.height = `${view.height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    context.font = '12px system-ui, "DejaVu Sans", sans-serif';
    context.textBaseline = "middle";
    const drawn = { ops: 0, arrows: 0 };
    const first = Math.max(0, Math.floor(view.scroll / view.rowHeight));
    const stop = Math.min(view.rows.length, Math.ceil((view.scroll + view.height - RULER) / view.rowHeight));
    context.save();
    context.beginPath();
    context.rect(view.labels, RULER, view.width - view.labels, view.height - RULER);
    context.clip();
    for (let line = first; line < stop; line++) drawn.ops += this.drawRow(line);
    if (view.arrows) drawn.arrows = this.drawArrows(first, stop);
    this.outline(view.selected);
    context.restore();
    for (let line = first; line < stop; line++) this.drawLabel(line);
    this.drawRuler();
    if (!view.rows.length) context.fillText("no rank has such a name", 6, RULER + view.rowHeight / 2);
    return drawn;
  }

  x(time) {
    const { from, to, labels, width } = this.view;
    return labels + ((time - from) / (to - from)) * (width - labels);
  }

  y(line) {
    return RULER + line * this.view.rowHeight - this.view.scroll;
  }

  drawRow(line) {
    const { context, view } = this, { step } = view, row = view.rows[line];
    const top = this.y(line) + 2, height = view.rowHeight - 4;
    context.fillStyle = this.pattern;
    context.fillRect(this.x(0), top, this.x(step.length) - this.x(0), height);
    let drawn = 0;
    for (let index = step.at(row, view.from); index < step.first[row + 1] && step.begin[index] < view.to; index++) {
      if (step.end(index) < view.from) continue;
      this.drawOp(index, top, height);
      drawn += 1;
    }
    return drawn;
  }

  drawOp(index, top, height) {
    const { context, view, colours } = this, { step } = view;
    const begin = this.x(step.begin[index] + step.wait[index]), end = this.x(step.end(index));
    const shown = view.shows(index), look = view.look(index);
    context.globalAlpha = shown ? 1 : 0.13;
    context.fillStyle = colours[look];
    if (step.wait[index]) {
      const waits = this.x(step.begin[index]);
      context.fillRect(waits, top + height - 2, begin - waits, 2);
    }
    const width = Math.max(end - begin, 0.75);
    context.fillRect(begin, top, width > 3 ? width - 0.5 : width, height);
    const label = step.label(index), left = Math.max(begin, view.labels), room = Math.min(end, view.width) - left;
    if (shown && height > 10 && room > label.length * LETTER + 6) {
      context.fillStyle = colours[look.endsWith("alt") ? "on-pale" : "on-strong"];
      context.fillText(label, left + 4, top + height / 2 + 0.5);
    }
    context.globalAlpha = 1;
  }

  drawArrows(first, stop) {
    const { context, view, colours } = this, { step } = view, found = [], chosen = [];
    for (let arrow = 0; arrow < step.sent.length; arrow++) {
      const [sent, received] = [step.sent[arrow], step.received[arrow]];
      const lines = [view.lineOf[step.row[sent]], view.lineOf[step.row[received]]];
      if (lines.includes(-1) || Math.max(...lines) < first || Math.min(...lines) >= stop) continue;
      if (step.end(received) < view.from || step.end(sent) > view.to) continue;
      if (!view.shows(sent) || !view.shows(received)) continue;
      (sent === view.selected || received === view.selected ? chosen : found).push([sent, received, lines]);
    }
    context.lineWidth = 1;
    context.strokeStyle = context.fillStyle = colours.ink;
    context.globalAlpha = clamp(MOST_PLAIN_ARROWS / (found.length + 1), 0.12, 0.75);
    for (const arrow of found) this.drawArrow(...arrow);
    context.globalAlpha = 1;
    context.lineWidth = 2;
    for (const arrow of chosen) this.drawArrow(...arrow);
    return found.length + chosen.length;
  }

  drawArrow(sent, received, [source, destination]) {
    const { context, view } = this, { step } = view, middle = view.rowHeight / 2;
    const down = destination > source ? 1 : -1, edge = (view.rowHeight / 2 - 3) * down;
    const [x1, y1] = [this.x(step.end(sent)), this.y(source) + middle + edge];
    const [x2, y2] = [this.x(step.end(received)), this.y(destination) + middle - edge];
    const bend = Math.min(18, Math.abs(y2 - y1) / 2) * down;
    context.beginPath();
    context.moveTo(x1, y1);
    context.bezierCurveTo(x1, y1 + bend, x2, y2 - bend, x2, y2);
    context.stroke();
    context.beginPath();
    context.moveTo(x2, y2);
    context.lineTo(x2 - 3.5, y2 - 6 * down);
    context.lineTo(x2 + 3.5, y2 - 6 * down);
    context.fill();
  }

  outline(index) {
    const { context, view, colours } = this;
    if (index === null || view.lineOf[view.step.row[index]] < 0) return;
    const left = this.x(view.step.begin[index]), top = this.y(view.lineOf[view.step.row[index]]);
    context.strokeStyle = colours.ink;
    context.lineWidth = 2;
    context.strokeRect(left, top + 1, Math.max(this.x(view.step.end(index)) - left, 2), view.rowHeight - 2);
  }

  drawLabel(line) {
    const { context, view, colours } = this, { step } = view, row = view.rows[line], top = this.y(line);
    context.fillStyle = colours.surface;
    context.fillRect(0, top, view.labels - 2, view.rowHeight);
    context.fillStyle = row === view.slowest ? colours.mark : colours.ink;
    context.textAlign = "left";
    context.fillText(this.fitted(step.data.rows[row], view.labels - 44), 6, top + view.rowHeight / 2);
    context.textAlign = "right";
    context.fillStyle = row === view.slowest ? colours.mark : colours.quiet;
    context.fillText(percent(step.busy(row) / step.length), view.labels - 7, top + view.rowHeight / 2);
    context.textAlign = "left";
  }

  /** A rank's name as it fits: the group's is cut, never the number. */
  fitted(text, room) {
    const cut = text.lastIndexOf("/"), number = text.slice(cut);
    let name = text;
    for (let kept = cut; kept > 1 && this.context.measureText(name).width > room; kept--) {
      name = `${text.slice(0, kept - 1)}…${number}`;
    }
    return name;
  }

  drawRuler() {
    const { context, view, colours } = this;
    context.fillStyle = colours.surface;
    context.fillRect(0, 0, view.width, RULER);
    context.fillStyle = colours.quiet;
    context.fillText("at work", 6, RULER / 2);
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.textAlign = "center";
    for (const time of ticks(view.from, view.to, Math.max(2, (view.width - view.labels) / 110))) {
      const x = this.x(time);
      if (x < view.labels || x > view.width) continue;
      context.beginPath();
      context.moveTo(x, RULER - 5);
      context.lineTo(x, RULER);
      context.stroke();
      if (x > view.labels + 20 && x < view.width - 24) context.fillText(duration(time), x, RULER / 2 - 1);
    }
    context.textAlign = "left";
    if (view.stretch) {
      const [a, b] = view.stretch.map((time) => this.x(time));
      context.globalAlpha = 0.25;
      context.fillStyle = colours.forward;
      context.fillRect(Math.min(a, b), 0, Math.abs(b - a), view.height);
      context.globalAlpha = 1;
    }
  }
}
