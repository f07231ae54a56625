// Making and changing elements, and saying numbers the way people read them.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "rect", "path", "circle", "ellipse", "line", "text", "title", "mask"]);

/**
 * Makes an element: `h("button", {class: "main", onclick: go}, "Export")`. `on…` listens, null and false leave an attribute
 * out, `true` sets it empty; children may be nested arrays, and null among them is nothing. Text is never read as HTML.
 */
export function h(tag, props = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  set(element, props);
  element.append(...flat(children));
  return element;
}

/** Sets attributes, listeners and properties as `h` does. */
export function set(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "style") Object.entries(value).forEach(([key, text]) => element.style.setProperty(key, text));
    else if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

/** Replaces what is in an element; the focus goes back to the element of the same id, if it is still there. */
export function fill(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
  element.replaceChildren(...flat(children));
  const again = focused && document.getElementById(focused);
  if (again) {
    again.focus({ preventScroll: true });
    again.select?.(); // as Tab does: what is typed next replaces what is there
  }
  return element;
}

const flat = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** Tells a screen reader, and whoever looks, for a few seconds. */
export function tell(text) {
  const told = document.getElementById("told");
  told.textContent = text;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => (told.textContent = ""), 6000);
}

/** Copies text; where the browser does not let us, says so. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    tell(`${what} copied`);
  } catch {
    tell("The browser did not let us copy; select the text and copy it yourself");
  }
}

/** A labelled field: the label is tied to the control by an id of its own. */
export function field(label, control, hint) {
  control.id ||= `f${(field.count = (field.count ?? 0) + 1)}`;
  const note = hint && h("small", { id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, note);
}

/** A drop-down; `options` are [value, text]. */
export function select(value, options, onchange, props = {}) {
  const control = h(
    "select",
    props,
    options.map(([each, text]) => h("option", { value: each }, text)),
  );
  control.value = value;
  control.addEventListener("change", () => onchange(control.value));
  return control;
}

export const bytes = (count) => {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = count < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** power).toFixed(power && count / 1000 ** power < 100 ? 1 : 0)} ${units[power]}`;
};

/** 75.5 → "1:15.5" */
export const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  const rest = (tenths % 600) / 10;
  const [minutes, hours] = [Math.floor(tenths / 600) % 60, Math.floor(tenths / 36000)];
  const head = hours ? `${hours}:${String(minutes).padStart(2, "0")}` : `${minutes}`;
  return `${head}:${rest.toFixed(1).padStart(4, "0")}`;
};

/** 5400 → "1 h 30 min" */
export const lasting = (seconds) => {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
};

export const dollars = (usd) => (usd === null ? "–" : `$${usd.toFixed(usd < 1 ? 4 : 2)}`);

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
/** "3 minutes ago", with the moment itself as title. */
export function ago(iso) {
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  const [unit, size] = [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
  ].find(([, one]) => Math.abs(seconds) >= one) ?? ["second", 1];
  const text = Math.abs(seconds) < 5 ? "now" : relative.format(Math.round(seconds / size), unit);
  return h("time", { datetime: iso, title: new Date(iso).toLocaleString() }, text);
}

export const time = (iso) => new Date(iso).toLocaleTimeString([], { hourCycle: "h23" });

/** The last part of a key, which is how people know their file. */
export const nameOf = (key) => (key ? key.split("/").at(-1) : "several videos");
