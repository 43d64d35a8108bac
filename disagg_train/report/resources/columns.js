// Typed columns: base64 of little-endian numbers, as timeline_data.py writes them.
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

const columns = {
  u16: (text) => new Uint16Array(bytesOf(text).buffer),
  i16: (text) => new Int16Array(bytesOf(text).buffer),
  u32: (text) => new Uint32Array(bytesOf(text).buffer),
};

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Microseconds for people: three digits. */
function duration(us) {
  if (us >= 1e6) return `${(us / 1e6).toPrecision(3)} s`;
  if (us >= 1e3) return `${(us / 1e3).toPrecision(3)} ms`;
  return `${Math.round(us)} µs`;
}

const percent = (part) => `${(100 * part).toFixed(0)}%`;

/** An element with attributes and children; texts are never read as HTML. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
