// The picture with what can be moved on it: boxes, ellipses and texts, in pixels of the video, by pointer and by keyboard.

import { h, set } from "./dom.js";
import { clamp, inside, rounded } from "./edit.js";

const STEP = 10; // pixels of the video for an arrow key; with Shift one
const HANDLE = 7; // radius on the screen

/**
 * What an item is to the stage. `geometry` is its place now; `change` is told the new one.
 * @typedef {{id: string, shape: "box" | "ellipse" | "text", label: string, geometry: object, text?: string, change: (geometry: object) => void}} Item
 */

/** How each shape moves, grows, and what its handles do; sizes in pixels of the video. */
const SHAPES = {
  box: {
    moved: (g, dx, dy, w, h) => inside({ ...g, x: g.x + dx, y: g.y + dy }, w, h),
    grown(g, factor, w, h) {
      const width = clamp(g.width * factor, 32, Math.min(w, (h * g.width) / g.height));
      const height = (width * g.height) / g.width;
      return inside({ x: g.x + (g.width - width) / 2, y: g.y + (g.height - height) / 2, width, height }, w, h);
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
        pulled(px, py, w, h) {
          const [fx, fy] = [g.x + (1 - right) * g.width, g.y + (1 - low) * g.height];
          const ratio = g.width / g.height;
          const most = Math.min(right ? w - fx : fx, (low ? h - fy : fy) * ratio);
          const width = clamp(Math.max(Math.abs(px - fx), Math.abs(py - fy) * ratio), Math.min(32, most), most);
          return { x: right ? fx : fx - width, y: low ? fy : fy - width / ratio, width, height: width / ratio };
        },
      })),
  },
  ellipse: {
    moved: (g, dx, dy, w, h) => ({ ...g, x: clamp(g.x + dx, 0, w), y: clamp(g.y + dy, 0, h) }),
    grown: (g, factor) => ({ ...g, radius_x: Math.max(8, g.radius_x * factor), radius_y: Math.max(8, g.radius_y * factor) }),
    handles: (g) => [
      { x: g.x + g.radius_x, y: g.y, cursor: "ew-resize", pulled: (px) => ({ ...g, radius_x: Math.max(8, Math.abs(px - g.x)) }) },
      { x: g.x, y: g.y + g.radius_y, cursor: "ns-resize", pulled: (_, py) => ({ ...g, radius_y: Math.max(8, Math.abs(py - g.y)) }) },
    ],
  },
  text: {
    moved: (g, dx, dy, w, h) => ({ ...g, x: clamp(g.x + dx, 0, w), y: clamp(g.y + dy, 0, h) }),
    grown: (g, factor) => ({ ...g, font_size: clamp(g.font_size * factor, 8, 500) }),
    handles: () => [],
  },
};

export class Stage {
  /** @param items returns what is on the picture now; @param veil returns how dark it is beside the ellipses: 0 to 1 */
  constructor(items, veil) {
    Object.assign(this, { items, veil });
    this.holes = h("mask", { id: "holes" });
    this.dark = h("rect", { class: "veil", mask: "url(#holes)", width: "100%", height: "100%" });
    this.video = h("video", { playsinline: true, preload: "auto", tabindex: "-1", "aria-label": "The source" });
    this.layer = h("svg", { class: "layer", "aria-label": "What is on the picture", role: "group" }, this.holes, this.dark);
    this.element = h("div", { class: "stage" }, this.video, this.layer);
    this.drawn = new Map();
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

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
      if (!items.some((item) => item.id === id && item.shape === drawn.shape)) {
        drawn.group.remove();
        this.drawn.delete(id);
      }
    }
    const unit = Math.max(width / (this.layer.clientWidth || width), height / (this.layer.clientHeight || height));
    for (const item of items) this.place(item, unit);
    const ellipses = items
      .filter(({ shape }) => shape === "ellipse")
      .map(({ geometry: g }) => h("ellipse", { cx: g.x, cy: g.y, rx: g.radius_x, ry: g.radius_y }));
    this.holes.replaceChildren(h("rect", { width, height, fill: "#fff" }), ...ellipses);
    set(this.dark, { "fill-opacity": ellipses.length ? this.veil() : 0 });
  }

  /** @param unit how many pixels of the video a pixel of the screen is */
  place(item, unit) {
    const drawn = this.drawn.get(item.id) ?? this.make(item);
    const [width, height] = this.size;
    const g = item.geometry;
    drawn.item = item;
    set(drawn.group, { "aria-label": item.label, style: { "--unit": unit } });
    if (item.shape === "box") {
      const hole = `M${g.x} ${g.y}h${g.width}v${g.height}h${-g.width}z`;
      set(drawn.shade, { d: `M0 0h${width}v${height}h${-width}z${hole}` });
      set(drawn.body, { x: g.x, y: g.y, width: g.width, height: g.height });
    } else if (item.shape === "ellipse") {
      set(drawn.body, { cx: g.x, cy: g.y, rx: g.radius_x, ry: g.radius_y });
    } else {
      drawn.body.textContent = item.text;
      const [, up, across] = item.anchor.match(/^(top|bottom)?_?(left|right)?/);
      set(drawn.body, {
        x: g.x,
        y: g.y,
        "font-size": g.font_size,
        "text-anchor": { left: "start", right: "end" }[across] ?? "middle",
        "dominant-baseline": { top: "text-before-edge", bottom: "text-after-edge" }[up] ?? "middle",
      });
    }
    SHAPES[item.shape].handles(g).forEach((handle, index) => {
      set(drawn.handles[index], { cx: handle.x, cy: handle.y, r: HANDLE * unit, style: { cursor: handle.cursor } });
    });
  }

  make(item) {
    const tag = { box: "rect", ellipse: "ellipse", text: "text" }[item.shape];
    const drawn = { shape: item.shape, item, body: h(tag, { class: "body" }) };
    drawn.shade = h("path", { class: "shade", "fill-rule": "evenodd" });
    drawn.handles = SHAPES[item.shape].handles(item.geometry).map(() => h("circle", { class: "handle" }));
    // A thing of our own that takes arrow keys: no role of HTML's fits, and a screen reader must let the keys through.
    const props = {
      class: `item ${item.shape}`,
      tabindex: "0",
      role: "application",
      "aria-roledescription": "movable",
      "aria-label": item.label,
      "data-item": item.id,
    };
    drawn.group = h(
      "g",
      { ...props, onkeydown: (event) => this.key(event, drawn) },
      item.shape === "box" && drawn.shade,
      drawn.body,
      drawn.handles,
    );
    this.drag(drawn.body, drawn, (g, from, to) => SHAPES[g.shape].moved(g.geometry, to.x - from.x, to.y - from.y, ...this.size));
    drawn.handles.forEach((circle, index) => {
      this.drag(circle, drawn, (g, _, to) => SHAPES[g.shape].handles(g.geometry)[index].pulled(to.x, to.y, ...this.size));
    });
    this.layer.append(drawn.group);
    this.drawn.set(item.id, drawn);
    return drawn;
  }

  /** Has a pointer change an item; `become` gets the item as it was, where the pointer began and where it is. */
  drag(element, drawn, become) {
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      drawn.group.focus({ preventScroll: true });
      element.setPointerCapture(event.pointerId);
      const from = this.point(event);
      const was = drawn.item;
      const move = (moved) => drawn.item.change(rounded(become(was, from, this.point(moved))));
      element.addEventListener("pointermove", move);
      element.addEventListener("lostpointercapture", () => element.removeEventListener("pointermove", move), { once: true });
    });
  }

  key(event, drawn) {
    const step = event.shiftKey ? 1 : STEP;
    const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    const factor = { "+": 1.05, "=": 1.05, "-": 1 / 1.05 }[event.key];
    if (!way && !factor) return;
    event.preventDefault();
    const { shape, geometry } = drawn.item;
    const become = way ? SHAPES[shape].moved(geometry, ...way, ...this.size) : SHAPES[shape].grown(geometry, factor, ...this.size);
    drawn.item.change(rounded(become));
  }

  /** Where a pointer is, in pixels of the video. */
  point(event) {
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(this.layer.getScreenCTM().inverse());
  }
}
