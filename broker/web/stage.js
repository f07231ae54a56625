// The picture with what can be moved on it: boxes, ellipses and texts, in pixels of the video, by
// pointer and by keyboard.

import { h, set } from "./dom.js";
import { clamp, inside, rounded } from "./edit.js";

/** Pixels of the video for an arrow key; with Shift it is one. */
const STEP = 10;
/** Radius on the screen. */
const HANDLE = 7;

/** @typedef {{x: number, y: number}} Point */
/** @typedef {[width: number, height: number]} Size */

/**
 * A handle of a shape: where it is, and the shape after it was pulled to a point.
 * @template G
 * @typedef {{
 *   x: number, y: number, cursor: string, pulled: (x: number, y: number, size: Size) => G,
 * }} Handle
 */

/**
 * How a shape moves, grows, and what its handles do; sizes in pixels of the video.
 * @template G
 * @typedef {{
 *   tag: SvgTag,
 *   moved: (geometry: G, dx: number, dy: number, size: Size) => G,
 *   grown: (geometry: G, factor: number, size: Size) => G,
 *   handles: (geometry: G) => Handle<G>[],
 * }} Shape
 */

/**
 * An item and the elements that show it.
 * @typedef {{
 *   item: Item, body: SVGElement, shade: SVGElement, handles: SVGElement[], group: SVGElement,
 * }} Drawn
 */

/** @type {{box: Shape<Box>, ellipse: Shape<Ellipse>, text: Shape<Lettering>}} */
const SHAPES = {
  box: {
    tag: "rect",
    moved: (g, dx, dy, size) => inside({ ...g, x: g.x + dx, y: g.y + dy }, ...size),
    grown(g, factor, [most, high]) {
      const width = clamp(g.width * factor, 32, Math.min(most, (high * g.width) / g.height));
      const height = (width * g.height) / g.width;
      const [x, y] = [g.x + (g.width - width) / 2, g.y + (g.height - height) / 2];
      return inside({ x, y, width, height }, most, high);
    },
    handles: (g) =>
      [
        [0, 0],
        [1, 0],
        [0, 1],
        [1, 1],
      ].map(([right, low]) => ({
        x: g.x + right * g.width,
        y: g.y + low * g.height,
        cursor: right === low ? "nwse-resize" : "nesw-resize",
        // The opposite corner stays where it is.
        pulled(px, py, [whole, high]) {
          const [fx, fy] = [g.x + (1 - right) * g.width, g.y + (1 - low) * g.height];
          const ratio = g.width / g.height;
          const most = Math.min(right ? whole - fx : fx, (low ? high - fy : fy) * ratio);
          const width = clamp(
            Math.max(Math.abs(px - fx), Math.abs(py - fy) * ratio),
            Math.min(32, most),
            most,
          );
          return {
            x: right ? fx : fx - width,
            y: low ? fy : fy - width / ratio,
            width,
            height: width / ratio,
          };
        },
      })),
  },
  ellipse: {
    tag: "ellipse",
    moved: (g, dx, dy, size) => ({ ...g, ...within(g, dx, dy, size) }),
    grown: (g, factor) => ({
      ...g,
      radius_x: Math.max(8, g.radius_x * factor),
      radius_y: Math.max(8, g.radius_y * factor),
    }),
    handles: (g) => [
      {
        x: g.x + g.radius_x,
        y: g.y,
        cursor: "ew-resize",
        pulled: (px) => ({ ...g, radius_x: Math.max(8, Math.abs(px - g.x)) }),
      },
      {
        x: g.x,
        y: g.y + g.radius_y,
        cursor: "ns-resize",
        pulled: (_, py) => ({ ...g, radius_y: Math.max(8, Math.abs(py - g.y)) }),
      },
    ],
  },
  text: {
    tag: "text",
    moved: (g, dx, dy, size) => ({ ...g, ...within(g, dx, dy, size) }),
    grown: (g, factor) => ({ ...g, font_size: clamp(g.font_size * factor, 8, 500) }),
    handles: () => [],
  },
};

/**
 * A point moved, within the picture.
 * @param {Point} point
 * @param {number} dx
 * @param {number} dy
 * @param {Size} size
 */
const within = ({ x, y }, dx, dy, [width, height]) => ({
  x: clamp(x + dx, 0, width),
  y: clamp(y + dy, 0, height),
});

/**
 * The rules of an item's own shape.
 * @returns {Shape<any>}
 */
const shapeOf = (/** @type {Item} */ item) => SHAPES[item.shape];

/** Gives an item another place; in tenths of a pixel. */
const put = (/** @type {Item} */ item, /** @type {any} */ geometry) =>
  item.change(rounded(geometry));

export class Stage {
  /**
   * @param {() => Item[]} items returns what is on the picture now
   * @param {() => number} veil returns how dark it is beside the ellipses: 0 to 1
   */
  constructor(items, veil) {
    this.items = items;
    this.veil = veil;
    this.holes = h("mask", { id: "holes" });
    this.dark = h("rect", { class: "veil", mask: "url(#holes)", width: "100%", height: "100%" });
    this.video = h("video", {
      playsinline: true,
      preload: "auto",
      tabindex: "-1",
      "aria-label": "The source",
    });
    this.layer = h(
      "svg",
      { class: "layer", "aria-label": "What is on the picture", role: "group" },
      this.holes,
      this.dark,
    );
    this.element = h("div", { class: "stage" }, this.video, this.layer);
    /** @type {Map<string, Drawn>} */
    this.drawn = new Map();
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** @returns {Size} */
  get size() {
    return [this.video.videoWidth, this.video.videoHeight];
  }

  /** Puts every item where it is now. */
  draw() {
    const [width, height] = this.size;
    if (!width) return;
    this.element.style.setProperty("--ratio", `${width} / ${height}`);
    set(this.layer, { viewBox: `0 0 ${width} ${height}` });
    const items = this.items();
    for (const [id, drawn] of this.drawn) {
      if (!items.some((item) => item.id === id && item.shape === drawn.item.shape)) {
        drawn.group.remove();
        this.drawn.delete(id);
      }
    }
    const unit = Math.max(
      width / (this.layer.clientWidth || width),
      height / (this.layer.clientHeight || height),
    );
    for (const item of items) this.place(item, unit);
    const ellipses = items.flatMap(({ shape, geometry: g }) =>
      shape === "ellipse"
        ? [h("ellipse", { cx: g.x, cy: g.y, rx: g.radius_x, ry: g.radius_y })]
        : [],
    );
    this.holes.replaceChildren(h("rect", { width, height, fill: "#fff" }), ...ellipses);
    set(this.dark, { "fill-opacity": ellipses.length ? this.veil() : 0 });
  }

  /**
   * @param {Item} item
   * @param {number} unit how many pixels of the video a pixel of the screen is
   */
  place(item, unit) {
    const drawn = this.drawn.get(item.id) ?? this.make(item);
    const [width, height] = this.size;
    drawn.item = item;
    set(drawn.group, { "aria-label": item.label, style: { "--unit": unit } });
    if (item.shape === "box") {
      const g = item.geometry;
      const hole = `M${g.x} ${g.y}h${g.width}v${g.height}h${-g.width}z`;
      set(drawn.shade, { d: `M0 0h${width}v${height}h${-width}z${hole}` });
      set(drawn.body, { x: g.x, y: g.y, width: g.width, height: g.height });
    } else if (item.shape === "ellipse") {
      const g = item.geometry;
      set(drawn.body, { cx: g.x, cy: g.y, rx: g.radius_x, ry: g.radius_y });
    } else {
      const g = item.geometry;
      drawn.body.textContent = item.text;
      set(drawn.body, { x: g.x, y: g.y, "font-size": g.font_size, ...anchored(item.anchor) });
    }
    shapeOf(item)
      .handles(item.geometry)
      .forEach((handle, index) => {
        set(drawn.handles[index], {
          cx: handle.x,
          cy: handle.y,
          r: HANDLE * unit,
          style: { cursor: handle.cursor },
        });
      });
  }

  /** @returns {Drawn} */
  make(/** @type {Item} */ item) {
    const shape = shapeOf(item);
    const body = h(shape.tag, { class: "body" });
    const shade = h("path", { class: "shade", "fill-rule": "evenodd" });
    const handles = shape.handles(item.geometry).map(() => h("circle", { class: "handle" }));
    // A thing of our own that takes arrow keys: no role of HTML's fits, and a screen reader must
    // let the keys through.
    const props = {
      class: `item ${item.shape}`,
      tabindex: "0",
      role: "application",
      "aria-roledescription": "movable",
      "aria-label": item.label,
      "data-item": item.id,
    };
    const group = h(
      "g",
      { ...props, onkeydown: (event) => this.key(event, drawn) },
      item.shape === "box" && shade,
      body,
      handles,
    );
    const drawn = { item, body, shade, handles, group };
    this.drag(body, drawn, (was, from, to) =>
      shape.moved(was.geometry, to.x - from.x, to.y - from.y, this.size),
    );
    handles.forEach((circle, index) => {
      this.drag(circle, drawn, (was, _, to) =>
        shape.handles(was.geometry)[index].pulled(to.x, to.y, this.size),
      );
    });
    this.layer.append(group);
    this.drawn.set(item.id, drawn);
    return drawn;
  }

  /**
   * Has a pointer change an item.
   * @param {SVGElement} element what the pointer takes hold of
   * @param {Drawn} drawn
   * @param {(was: Item, from: Point, to: Point) => Item["geometry"]} become returns the new place,
   *   for the item as it was, where the pointer began and where it is
   */
  drag(element, drawn, become) {
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      drawn.group.focus({ preventScroll: true });
      element.setPointerCapture(event.pointerId);
      const from = this.point(event);
      const was = drawn.item;
      const move = (/** @type {PointerEvent} */ moved) =>
        put(drawn.item, become(was, from, this.point(moved)));
      element.addEventListener("pointermove", move);
      element.addEventListener(
        "lostpointercapture",
        () => element.removeEventListener("pointermove", move),
        { once: true },
      );
    });
  }

  key(/** @type {KeyboardEvent} */ event, /** @type {Drawn} */ { item }) {
    const step = event.shiftKey ? 1 : STEP;
    const shape = shapeOf(item);
    const way = WAYS.get(event.key);
    const factor = FACTORS.get(event.key);
    if (way) {
      put(item, shape.moved(item.geometry, step * way[0], step * way[1], this.size));
    } else if (factor) put(item, shape.grown(item.geometry, factor, this.size));
    else return;
    event.preventDefault();
  }

  /** Where a pointer is, in pixels of the video. */
  point(/** @type {PointerEvent} */ event) {
    const screen = this.layer.getScreenCTM();
    const point = new DOMPoint(event.clientX, event.clientY);
    return screen ? point.matrixTransform(screen.inverse()) : point;
  }
}

/** @type {Map<string, [number, number]>} */
const WAYS = new Map([
  ["ArrowLeft", [-1, 0]],
  ["ArrowRight", [1, 0]],
  ["ArrowUp", [0, -1]],
  ["ArrowDown", [0, 1]],
]);
const FACTORS = new Map([
  ["+", 1.05],
  ["=", 1.05],
  ["-", 1 / 1.05],
]);

/** How SVG lays a text at its anchor: "top_left", "bottom", "center" … */
const anchored = (/** @type {string} */ anchor) => ({
  "text-anchor": anchor.endsWith("left") ? "start" : anchor.endsWith("right") ? "end" : "middle",
  "dominant-baseline": anchor.startsWith("top")
    ? "text-before-edge"
    : anchor.startsWith("bottom")
      ? "text-after-edge"
      : "middle",
});
