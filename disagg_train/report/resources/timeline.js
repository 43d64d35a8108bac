// The timeline: what is shown of a step, and what keys, mouse and fingers change of that.
const ZOOM = 1.5;
const SHORTEST = 20; // microseconds across the whole width

class Timeline {
  constructor(box, tip, say, modules) {
    this.box = box;
    this.tip = tip;
    this.say = say;
    this.encoders = new Set(modules.filter((module) => module !== "language"));
    this.canvas = box.querySelector("canvas");
    this.spacer = this.canvas.parentElement;
    this.painter = new Painter(this.canvas);
    this.hiddenKinds = new Set();
    this.hiddenModules = new Set();
    this.arrows = true;
    this.wanted = [];
    this.order = "place";
    this.selected = null;
    this.pointers = new Map();
    this.listen();
  }

  show(step) {
    this.step = step;
    this.selected = null;
    this.from = 0;
    this.to = step.length;
    const busy = step.data.rows.map((_, row) => step.busy(row));
    this.slowest = busy.indexOf(Math.max(...busy));
    this.arrange();
  }

  /** Choose and sort the rows. */
  arrange() {
    const { step } = this, all = [...step.data.rows.keys()];
    const matches = (row) => this.wanted.some((text) => {
      const name = step.data.rows[row];
      return /\d$/.test(text) ? name === text : name.startsWith(text);
    });
    this.rows = this.wanted.length ? all.filter(matches) : all;
    const sign = { place: 0, busy: -1, idle: 1 }[this.order];
    if (sign) this.rows.sort((a, b) => sign * (step.busy(a) - step.busy(b)));
    this.lineOf = new Int32Array(step.numRows).fill(-1);
    this.rows.forEach((row, line) => (this.lineOf[row] = line));
    this.rowHeight = this.rows.length <= 12 ? 34 : 22;
    const height = RULER + Math.max(this.rows.length, 1) * this.rowHeight;
    this.spacer.style.height = `${height}px`;
    this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.paint();
    });
  }

  paint() {
    const { box } = this, width = box.clientWidth, height = box.clientHeight;
    this.labels = width < 560 ? 96 : 150;
    const drawn = this.painter.draw({
      ...{ width, height, labels: this.labels, from: this.from, to: this.to, step: this.step, rows: this.rows },
      ...{ lineOf: this.lineOf, rowHeight: this.rowHeight, scroll: box.scrollTop, selected: this.selected },
      ...{ slowest: this.slowest, arrows: this.arrows, stretch: this.stretch },
      shows: (index) => this.shows(index),
      look: (index) => this.look(index),
    });
    Object.assign(box.dataset, { from: Math.round(this.from), to: Math.round(this.to), rows: this.rows.length, ...drawn });
    box.dataset.first = this.step.data.rows[this.rows[0]] ?? "";
    if (!performance.getEntriesByName("drawn").length) performance.mark("drawn");
  }

  shows(index) {
    return !this.hiddenKinds.has(this.step.kind(index)) && !this.hiddenModules.has(this.step.module(index));
  }

  look(index) {
    const kind = this.step.kind(index), pale = this.encoders.has(this.step.module(index));
    return pale && (kind === "forward" || kind === "backward") ? `${kind}-alt` : kind;
  }

  // What is in view.

  setView(from, to) {
    const length = clamp(to - from, SHORTEST, this.step.length);
    this.from = clamp(from, 0, this.step.length - length);
    this.to = this.from + length;
    this.draw();
  }

  zoom(times, around = (this.from + this.to) / 2) {
    this.setView(around - (around - this.from) / times, around + (this.to - around) / times);
  }

  move(part) {
    const shift = (this.to - this.from) * part;
    const from = clamp(this.from + shift, 0, this.step.length - (this.to - this.from));
    this.setView(from, from + this.to - this.from);
  }

  zoomTo(index) {
    const { step } = this, margin = Math.max(step.duration[index], SHORTEST) * 0.6;
    this.setView(step.begin[index] - margin, step.end(index) + margin);
  }

  // What is chosen.

  select(index) {
    this.selected = index;
    if (index !== null) this.reveal(index);
    this.say(index === null ? "" : this.step.describe(index));
    this.draw();
  }

  reveal(index) {
    const { step, box } = this, line = this.lineOf[step.row[index]];
    const top = line * this.rowHeight, room = box.clientHeight - RULER;
    if (line >= 0 && (top < box.scrollTop || top + this.rowHeight > box.scrollTop + room)) box.scrollTop = top - room / 2;
    if (step.end(index) < this.from || step.begin[index] > this.to) {
      const half = (this.to - this.from) / 2;
      this.setView(step.begin[index] - half, step.begin[index] + half);
    }
  }

  selectBeside(change) {
    if (this.selected === null) return this.selectLine(0);
    const row = this.step.row[this.selected];
    return this.select(clamp(this.selected + change, this.step.first[row], this.step.first[row + 1] - 1));
  }

  selectLine(change) {
    if (!this.rows.length) return;
    const { step } = this;
    const line = this.selected === null ? 0 : clamp(this.lineOf[step.row[this.selected]] + change, 0, this.rows.length - 1);
    const time = this.selected === null ? this.from : step.begin[this.selected] + step.wait[this.selected];
    this.select(step.at(this.rows[line], time));
  }

  // Keys, mouse and fingers.

  listen() {
    const { box } = this;
    box.addEventListener("keydown", (event) => this.onKey(event));
    box.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    box.addEventListener("pointerdown", (event) => this.onDown(event));
    box.addEventListener("pointermove", (event) => this.onMove(event));
    for (const name of ["pointerup", "pointercancel"]) box.addEventListener(name, (event) => this.onUp(event));
    box.addEventListener("pointerleave", () => (this.tip.hidden = true));
    box.addEventListener("dblclick", (event) => this.zoom(ZOOM * ZOOM, this.place(event).time));
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.step && this.draw()).observe(box);
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const acts = {
      ArrowLeft: () => this.selectBeside(-1), ArrowRight: () => this.selectBeside(1),
      ArrowUp: () => this.selectLine(-1), ArrowDown: () => this.selectLine(1),
      "+": () => this.zoom(ZOOM), "=": () => this.zoom(ZOOM), "-": () => this.zoom(1 / ZOOM),
      a: () => this.move(-0.25), d: () => this.move(0.25), 0: () => this.setView(0, this.step.length),
      z: () => this.selected !== null && this.zoomTo(this.selected),
      Escape: () => (this.select(null), this.box.blur()),
    };
    const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  onWheel(event) {
    const focused = document.activeElement === this.box;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      event.preventDefault();
      this.move((event.deltaX || event.deltaY) / (this.box.clientWidth - this.labels));
    } else if (focused || event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 300), this.place(event).time);
    }
  }

  /** Where an event is: the time, the row, and the op there, if any. */
  place(event) {
    const { left, top } = this.box.getBoundingClientRect(), { step } = this;
    const [x, y] = [event.clientX - left, event.clientY - top];
    const time = this.from + ((x - this.labels) / (this.box.clientWidth - this.labels)) * (this.to - this.from);
    const row = y < RULER ? undefined : this.rows[Math.floor((y - RULER + this.box.scrollTop) / this.rowHeight)];
    if (row === undefined || x < this.labels) return { time, y, op: null, row };
    const op = step.at(row, time), slack = ((this.to - this.from) / this.box.clientWidth) * 2;
    return { time, y, row, op: step.begin[op] <= time && time <= step.end(op) + slack ? op : null };
  }

  onDown(event) {
    const at = this.place(event);
    this.pointers.set(event.pointerId, event);
    this.down = { x: event.clientX, from: this.from, to: this.to, at };
    if (at.y < RULER) this.stretch = [at.time, at.time];
    this.tip.hidden = true;
  }

  onMove(event) {
    if (!this.pointers.has(event.pointerId)) return this.hover(event);
    const before = this.pointers.get(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) return this.pinch(before, event);
    const moved = event.clientX - this.down.x;
    if (Math.abs(moved) > 3 && !this.box.hasPointerCapture(event.pointerId)) this.box.setPointerCapture(event.pointerId);
    if (this.stretch) {
      this.stretch[1] = this.place(event).time;
      return this.draw();
    }
    const shift = (moved / (this.box.clientWidth - this.labels)) * (this.down.to - this.down.from);
    const from = clamp(this.down.from - shift, 0, this.step.length - (this.down.to - this.down.from));
    return this.setView(from, from + this.down.to - this.down.from);
  }

  pinch(before, event) {
    const [other] = [...this.pointers.values()].filter((each) => each.pointerId !== event.pointerId);
    const [was, is] = [before, event].map((each) => Math.abs(each.clientX - other.clientX) || 1);
    this.zoom(is / was, (this.place(event).time + this.place(other).time) / 2);
    this.down = { ...this.down, x: event.clientX, from: this.from, to: this.to };
  }

  onUp(event) {
    const moved = this.down && Math.abs(event.clientX - this.down.x) > 3;
    this.pointers.delete(event.pointerId);
    if (this.stretch) {
      const [a, b] = this.stretch.sort((one, other) => one - other);
      this.stretch = null;
      if (moved) return this.setView(a, b);
      this.draw();
    } else if (!moved && event.type === "pointerup" && this.down?.at.row !== undefined) {
      this.select(this.down.at.op);
    }
    this.down = this.pointers.size ? this.down : null;
  }

  hover(event) {
    const { op } = event.pointerType === "touch" ? { op: null } : this.place(event);
    this.tip.hidden = op === null;
    if (op === null) return;
    this.tip.textContent = this.step.describe(op);
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    this.tip.style.left = `${clamp(event.clientX + 14, 4, innerWidth - width - 4)}px`;
    this.tip.style.top = `${clamp(event.clientY + 16, 4, innerHeight - height - 4)}px`;
  }
}
