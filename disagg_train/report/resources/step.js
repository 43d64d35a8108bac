// One recorded step, decoded: typed columns over all ops of all rows, and where each row begins.
class Step {
  constructor(data, ops) {
    this.data = data;
    this.names = ops;
    this.length = Math.max(data.length, 1);
    this.op = columns.u16(data.op);
    this.begin = columns.u32(data.begin);
    this.duration = columns.u32(data.duration);
    this.wait = columns.u32(data.wait);
    this.cause = columns.i16(data.cause);
    this.sent = columns.u32(data.sent);
    this.received = columns.u32(data.received);
    this.tokens = columns.u32(data.tokens);
    this.first = new Uint32Array(data.counts.length + 1);
    data.counts.forEach((count, row) => (this.first[row + 1] = this.first[row] + count));
    this.row = new Uint16Array(this.op.length);
    data.counts.forEach((_, row) => this.row.fill(row, this.first[row], this.first[row + 1]));
  }

  get numRows() {
    return this.data.rows.length;
  }

  end(index) {
    return this.begin[index] + this.duration[index];
  }

  name(index) {
    return this.names[this.op[index]][0];
  }

  kind(index) {
    return this.names[this.op[index]][1];
  }

  module(index) {
    return this.names[this.op[index]][2];
  }

  label(index) {
    return this.names[this.op[index]][3];
  }

  /** Seconds at work of a row's rank, in microseconds. */
  busy(row) {
    const [forward, backward, boundary, sync] = this.data.ranks[row];
    return forward + backward + boundary + sync;
  }

  /** The op of a row at a moment, or the last one before it. */
  at(row, time) {
    let [low, high] = [this.first[row], this.first[row + 1]];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.begin[middle] <= time) low = middle + 1;
      else high = middle;
    }
    return Math.max(low - 1, this.first[row]);
  }

  /** Tokens that an op sends to other ranks, or receives from them. */
  moved(index) {
    const isOf = (arrow) => this.sent[arrow] === index || this.received[arrow] === index;
    return this.tokens.reduce((sum, tokens, arrow) => sum + (isOf(arrow) ? tokens : 0), 0);
  }

  /** An op in words. */
  describe(index) {
    const row = this.data.rows[this.row[index]];
    const moved = this.moved(index);
    const tokens = moved ? `${moved.toLocaleString("en")} tokens, ` : "";
    const text = `${this.name(index)} on ${row}: ${tokens}${duration(this.duration[index])}, from ${duration(this.begin[index])} on`;
    if (this.cause[index] < 0) return `${text}.`;
    return `${text}; ${duration(this.wait[index])} of it waited for ${this.data.rows[this.cause[index]]}.`;
  }
}
