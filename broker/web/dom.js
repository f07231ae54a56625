// Making and changing elements, and saying numbers the way people read them.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set([
  "svg",
  "g",
  "rect",
  "path",
  "circle",
  "ellipse",
  "line",
  "text",
  "title",
  "mask",
]);

/**
 * Makes an element: `h("button", {class: "main", onclick: go}, "Export")`. `on…` listens, null and
 * false leave an attribute out, `true` sets it empty; children may be nested arrays, and null among
 * them is nothing. Text is never read as HTML.
 *
 * @template {string} T
 * @param {T} tag
 * @param {Props} props
 * @param {...Child} children
 */
export function h(tag, props = {}, ...children) {
  /** @type {Element} */
  const element = SVG_TAGS.has(tag)
    ? document.createElementNS(SVG, tag)
    : document.createElement(tag);
  set(element, props);
  element.append(...flat(children));
  return /** @type {Made<T>} */ (/** @type {unknown} */ (element));
}

/**
 * Sets attributes, listeners and properties as `h` does.
 * @param {Element} element
 * @param {Props} props
 */
export function set(element, { style = {}, ...props }) {
  for (const [key, text] of Object.entries(style)) styled(element).setProperty(key, String(text));
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else if (name === "value") {
      Object.assign(element, { value });
    } else if (value === null || value === undefined || value === false) {
      element.removeAttribute(name);
    } else element.setAttribute(name, value === true ? "" : String(value));
  }
}

const styled = (/** @type {Element} */ element) =>
  /** @type {HTMLElement | SVGElement} */ (element).style;

/** An element of the page's own HTML. */
export function byId(/** @type {string} */ id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`The page has no #${id}`);
  return found;
}

/**
 * Replaces what is in an element. The focus goes back to the element of the same id, if it is still
 * there.
 * @param {Element} element
 * @param {...Child} children
 */
export function fill(element, ...children) {
  const active = document.activeElement;
  const focused = active && element.contains(active) ? active.id : "";
  element.replaceChildren(...flat(children));
  const again = focused && document.getElementById(focused);
  if (again) {
    again.focus({ preventScroll: true });
    // As Tab does: what is typed next replaces what is there.
    if (again instanceof HTMLInputElement || again instanceof HTMLTextAreaElement) again.select();
  }
}

/** @returns {(Node | string)[]} */
const flat = (/** @type {Child[]} */ children) =>
  children.flatMap((child) => {
    if (Array.isArray(child)) return flat(child);
    if (child === null || child === undefined || child === false) return [];
    return [typeof child === "number" ? String(child) : child];
  });

/** @type {ReturnType<typeof setTimeout> | undefined} */
let telling;
/** Tells a screen reader, and whoever looks, for a few seconds. */
export function tell(/** @type {string} */ text) {
  const told = byId("told");
  told.textContent = text;
  clearTimeout(telling);
  telling = setTimeout(() => (told.textContent = ""), 6000);
}

/**
 * Copies text; where the browser does not let us, says so.
 * @param {string} text
 * @param {string} what its name for people
 */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    tell(`${what} copied`);
  } catch {
    tell("The browser did not let us copy; select the text and copy it yourself");
  }
}

let fields = 0;
/**
 * A labelled field: the label is tied to the control by an id of its own.
 * @param {string} label
 * @param {HTMLElement} control
 */
export function field(label, control) {
  control.id ||= `f${(fields += 1)}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control);
}

/**
 * A drop-down.
 * @param {string} value
 * @param {string[][]} options each [value, text]
 * @param {(value: string) => void} onchange
 * @param {Props} props
 */
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

export const bytes = (/** @type {number} */ count) => {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = count < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(count) / 3));
  const shown = count / 1000 ** power;
  return `${shown.toFixed(power && shown < 100 ? 1 : 0)} ${units[power]}`;
};

/** 75.5 → "1:15.5" */
export const clock = (/** @type {number} */ seconds) => {
  const tenths = Math.round(seconds * 10);
  const rest = (tenths % 600) / 10;
  const [minutes, hours] = [Math.floor(tenths / 600) % 60, Math.floor(tenths / 36000)];
  const head = hours ? `${hours}:${String(minutes).padStart(2, "0")}` : `${minutes}`;
  return `${head}:${rest.toFixed(1).padStart(4, "0")}`;
};

/** 5400 → "1 h 30 min" */
export const lasting = (/** @type {number} */ seconds) => {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
};

export const dollars = (/** @type {number | null} */ usd) =>
  usd === null ? "–" : `$${usd.toFixed(usd < 1 ? 4 : 2)}`;

/** @typedef {{unit: Intl.RelativeTimeFormatUnit, size: number}} Unit */
/** @type {Unit} */
const SECOND = { unit: "second", size: 1 };
/** @type {Unit[]} */
const UNITS = [
  { unit: "day", size: 86400 },
  { unit: "hour", size: 3600 },
  { unit: "minute", size: 60 },
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
/** "3 minutes ago", with the moment itself as title. */
export function ago(/** @type {string} */ iso) {
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  const { unit, size } = UNITS.find((each) => Math.abs(seconds) >= each.size) ?? SECOND;
  const text = Math.abs(seconds) < 5 ? "now" : relative.format(Math.round(seconds / size), unit);
  return h("time", { datetime: iso, title: new Date(iso).toLocaleString() }, text);
}

export const time = (/** @type {string} */ iso) =>
  new Date(iso).toLocaleTimeString([], { hourCycle: "h23" });

/** The last part of a key, which is how people know their file. */
export const nameOf = (/** @type {string | null | undefined} */ key) =>
  key ? key.slice(key.lastIndexOf("/") + 1) : "several videos";
