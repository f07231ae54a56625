// The settings beside the picture, for the type that is chosen. Every control changes the request
// and nothing else.

import { field, h, select } from "./dom.js";
import { hasCrop, isOneClip, keepsSize, keyAt, round, SIZES, typeNamed, TYPES } from "./edit.js";
import { addKey, byFrame, isCropped, items, removeKey, setCrop } from "./picture.js";

/** @typedef {import("./new.js").NewExport} NewExport */

/** @returns {Child[]} */
export function panel(/** @type {NewExport} */ screen) {
  const { type } = screen.request;
  return [
    types(screen),
    isOneClip(type) && trim(screen),
    hasCrop(type) && crop(screen),
    type === "overlay" && [highlights(screen), texts(screen)],
    (type === "annotate" || type === "multi_clip") && clips(screen),
    output(screen),
  ];
}

const group = (/** @type {string} */ title, /** @type {Child[]} */ ...children) =>
  h("fieldset", {}, h("legend", {}, title), children);

function types(/** @type {NewExport} */ screen) {
  const now = screen.request.type;
  const chip = (/** @type {[JobType, string, string]} */ [type, name]) =>
    h(
      "label",
      { class: "chip" },
      h("input", {
        type: "radio",
        name: "type",
        id: `type-${type}`,
        value: type,
        checked: now === type,
        onchange: () => screen.choose(type),
      }),
      name,
    );
  return group(
    "What to make",
    h("div", { class: "chips" }, TYPES.map(chip)),
    h("p", { class: "quiet" }, typeNamed(now).about),
  );
}

/**
 * A moment of an object that is part of the request; left empty it is left out.
 * @param {NewExport} screen
 * @param {{start_time?: number, end_time?: number}} object
 * @param {"start_time" | "end_time"} name
 * @param {string} label
 * @param {Props} props
 */
function moment(screen, object, name, label, props) {
  const control = h("input", {
    type: "number",
    step: "any",
    ...props,
    value: object[name] ?? "",
    onchange: () =>
      screen.edit(() => {
        if (control.value === "") delete object[name];
        else object[name] = Number(control.value);
      }),
  });
  return field(label, control);
}

/**
 * A word, or a colour, of an object that is part of the request.
 * @param {NewExport} screen
 * @param {string | undefined} now
 * @param {(value: string) => void} change
 * @param {string} label
 * @param {Props} props
 */
function words(screen, now, change, label, props) {
  const control = h("input", {
    ...props,
    value: now ?? "",
    onchange: () => screen.edit(() => change(control.value)),
  });
  return field(label, control);
}

/**
 * Two moments, each to be typed or taken from the picture.
 * @param {NewExport} screen
 * @param {{start_time?: number, end_time?: number}} object
 * @param {string} key
 */
function span(screen, object, key) {
  const here = (/** @type {"start_time" | "end_time"} */ name, /** @type {string} */ text) =>
    h(
      "button",
      {
        id: `${key}-${name}-here`,
        onclick: () => screen.edit(() => (object[name] = round(screen.moment, 3))),
      },
      text,
    );
  return h(
    "div",
    { class: "pair" },
    h(
      "div",
      {},
      moment(screen, object, "start_time", "Start (s)", { id: `${key}-start`, min: 0 }),
      here("start_time", "Start here"),
    ),
    h(
      "div",
      {},
      moment(screen, object, "end_time", "End (s)", {
        id: `${key}-end`,
        min: 0,
        placeholder: "the end",
      }),
      here("end_time", "End here"),
    ),
  );
}

const trim = (/** @type {NewExport} */ screen) =>
  group("Trim", span(screen, screen.request.params, "trim"));

function crop(/** @type {NewExport} */ screen) {
  const { params } = screen.request;
  const keys = params.crop_keyframes ?? [];
  const index = keyAt(keys, screen.moment);
  const [first] = items(screen);
  const box = first?.shape === "box" ? first.geometry : null;
  const place = (/** @type {keyof Box} */ name, /** @type {string} */ label) => {
    const control = h("input", {
      type: "number",
      step: "any",
      id: `crop-${name}`,
      value: box ? round(box[name], 1) : "",
      disabled: !box,
    });
    control.addEventListener("change", () => {
      const value = Number(control.value);
      const isNone = control.value === "" || (name === "width" && value <= 0);
      if (!box || isNone) return screen.showSettings();
      const height = name === "width" ? (value * box.height) / box.width : box.height;
      setCrop(screen, { ...box, [name]: value, height });
    });
    return field(label, control);
  };
  return group(
    "Crop",
    h(
      "p",
      { class: "quiet" },
      byFrame(params)
        ? "The keyframes of this edit are numbers of frames, which cannot be shown here; change " +
            "them in the request below."
        : "Drag the crop on the picture. Go to another moment and drag it again: it moves from " +
            "one keyframe to the next.",
    ),
    h(
      "div",
      { class: "pair three" },
      place("x", "Left"),
      place("y", "Top"),
      place("width", "Width"),
    ),
    h(
      "div",
      { class: "row" },
      h("button", { id: "add-key", disabled: !box, onclick: () => addKey(screen) }, "Add keyframe"),
      h(
        "button",
        { id: "remove-key", disabled: index < 0, onclick: () => removeKey(screen) },
        "Remove keyframe",
      ),
      h("small", {}, keys.length === 1 ? "1 keyframe" : `${keys.length} keyframes`),
    ),
    keys.length > 1 &&
      field(
        "Movement",
        select(
          params.interpolation ?? "linear",
          [
            ["linear", "in straight lines"],
            ["catmull_rom", "smooth"],
          ],
          (value) => screen.edit(() => (params.interpolation = value)),
          { id: "movement" },
        ),
      ),
  );
}

const EFFECTS = [
  ["spotlight", "Spotlight"],
  ["dark_overlay", "Darken the rest"],
  ["blur", "Blur the rest"],
  ["brightness_boost", "Brighten"],
  ["original", "Outline only"],
];

function highlights(/** @type {NewExport} */ screen) {
  const { params } = screen.request;
  const regions = (params.highlight_regions ??= []);
  const add = () =>
    screen.edit(() => {
      const [width, height] = sizeOf(screen);
      const radius = round(height / 6, 1);
      const start = round(screen.moment, 3);
      const ellipse = {
        time: start,
        x: width / 2,
        y: height / 2,
        radius_x: radius,
        radius_y: radius,
      };
      regions.push({
        start_time: start,
        end_time: round(Math.min(start + 2, screen.timeline.duration || start + 2), 3),
        keyframes: [ellipse],
      });
      screen.chosen = regions.length - 1;
    });
  return group(
    "Highlights",
    field(
      "Effect",
      select(
        params.effect_type ?? "blur",
        EFFECTS,
        (value) => screen.edit(() => (params.effect_type = value)),
        { id: "effect" },
      ),
    ),
    regions.map((region, index) =>
      part(screen, regions, index, `Highlight ${index + 1}`, "region", [
        span(screen, region, `region-${index}`),
        h(
          "p",
          { class: "quiet" },
          region.keyframes.length === 1
            ? "It rests."
            : `It moves through ${region.keyframes.length} keyframes.`,
          " Drag it at another moment, and it moves there.",
        ),
      ]),
    ),
    h("button", { id: "add-highlight", onclick: add }, "Add a highlight here"),
  );
}

/** The size of the picture, or a usual one where the browser does not know it. */
const sizeOf = (/** @type {NewExport} */ { source }) => [
  source.width || 1280,
  source.height || 720,
];

function texts(/** @type {NewExport} */ screen) {
  const { params } = screen.request;
  const layers = (params.text_layers ??= []);
  const add = () =>
    screen.edit(() => {
      const [width, height] = sizeOf(screen);
      layers.push({
        text: "Your text",
        start_time: round(screen.moment, 3),
        x: width / 2,
        y: round(height * 0.85, 1),
        anchor: "center",
        font_size: round(height / 12, 0),
        outline_width: 2,
      });
    });
  const elsewhere =
    isCropped(params) &&
    layers.length > 0 &&
    "This edit also crops: its texts are placed on the result, and not shown here.";
  return group(
    "Text",
    elsewhere && h("p", { class: "quiet" }, elsewhere),
    layers.map((layer, index) =>
      part(screen, layers, index, `Text ${index + 1}`, "text", [
        words(screen, layer.text, (value) => (layer.text = value), "Words", {
          id: `text-${index}-words`,
        }),
        span(screen, layer, `text-${index}`),
        words(screen, layer.color ?? "#ffffff", (value) => (layer.color = value), "Colour", {
          type: "color",
          id: `text-${index}-colour`,
        }),
      ]),
    ),
    h("button", { id: "add-text", onclick: add }, "Add a text here"),
  );
}

/**
 * One of several, which can be removed.
 * @template T
 * @param {NewExport} screen
 * @param {T[]} list
 * @param {number} index
 * @param {string} title
 * @param {string} key
 * @param {Child[]} children
 */
function part(screen, list, index, title, key, children) {
  const remove = h(
    "button",
    {
      id: `${key}-${index}-remove`,
      "aria-label": `Remove ${title}`,
      onclick: () => screen.edit(() => list.splice(index, 1)),
    },
    "Remove",
  );
  const chosen = () => {
    if (key === "region" && screen.chosen !== index) screen.edit(() => (screen.chosen = index));
  };
  return h(
    "div",
    { class: "part", onfocusin: chosen },
    h("div", { class: "row" }, h("strong", { class: "grow" }, title), remove),
    children,
  );
}

function clips(/** @type {NewExport} */ screen) {
  const { type, params } = screen.request;
  const joins = type === "multi_clip";
  const list = (params.clips ??= []);
  const nameOf = (/** @type {Clip} */ clip) =>
    screen.sources.find((source) => source.key === clip.input_key)?.name;
  const add = () =>
    screen.edit(() => {
      const start = round(screen.moment, 3);
      const end = round(Math.min(start + 5, screen.timeline.duration || start + 5), 3);
      list.push({
        ...(joins && { input_key: screen.source.key }),
        start_time: start,
        end_time: end > start ? end : start + 1,
        ...(!joins && { name: `Clip ${list.length + 1}` }),
      });
    });
  const earlier = (/** @type {number} */ index) =>
    screen.edit(() => list.splice(index - 1, 2, list[index], list[index - 1]));
  /** @type {(clip: Clip, index: number) => Child[]} */
  const told = (clip, index) => [
    joins && h("p", { class: "quiet" }, nameOf(clip) ?? clip.input_key),
    !joins &&
      words(screen, clip.name, (value) => (clip.name = value), "Caption", {
        id: `clip-${index}-name`,
      }),
    span(screen, clip, `clip-${index}`),
    !joins &&
      field(
        "Rating",
        select(
          String(clip.rating ?? ""),
          [["", "none"], ...[1, 2, 3, 4, 5].map((stars) => [String(stars), "★".repeat(stars)])],
          (value) =>
            screen.edit(() => (value ? (clip.rating = Number(value)) : delete clip.rating)),
          { id: `clip-${index}-rating` },
        ),
      ),
    index > 0 &&
      h("button", { id: `clip-${index}-earlier`, onclick: () => earlier(index) }, "Earlier"),
  ];
  return group(
    "Clips",
    list.map((clip, index) =>
      part(screen, list, index, `Clip ${index + 1}`, "clip", told(clip, index)),
    ),
    h(
      "div",
      { class: "row" },
      h("button", { id: "add-clip", onclick: add }, "Add a clip here"),
      joins &&
        h("button", { id: "add-video", onclick: () => screen.picker.click() }, "Add a video"),
    ),
    list.length > 1 && transition(screen, params),
  );
}

function transition(/** @type {NewExport} */ screen, /** @type {Params} */ params) {
  const kinds = [
    ["cut", "Cut"],
    ["fade", "Fade through black"],
    ["dissolve", "Dissolve"],
  ];
  const change = (/** @type {string} */ type) =>
    screen.edit(
      () =>
        (params.transition =
          type === "cut" ? undefined : { type, duration: params.transition?.duration ?? 0.5 }),
    );
  return field(
    "Between clips",
    select(params.transition?.type ?? "cut", kinds, change, { id: "transition" }),
  );
}

function output(/** @type {NewExport} */ screen) {
  return group("Output", size(screen), mode(screen), rate(screen), sound(screen));
}

function size(/** @type {NewExport} */ screen) {
  const { type, params } = screen.request;
  const { output_width: width, output_height: height } = params;
  const known = SIZES.some(([wide, high]) => wide === width && high === height);
  const source = keepsSize(type) ? [["", "As the source"]] : [];
  // With a size, an overlay is cropped to it, and its texts are placed on the result: nothing that
  // the picture shows.
  const offered =
    type === "overlay"
      ? []
      : SIZES.map(([wide, high, name]) => [`${wide}x${high}`, `${name} · ${wide} × ${high}`]);
  const custom = screen.custom || (width !== undefined && !known);
  const sizes = [
    ...source,
    ...offered,
    ...(type !== "overlay" || custom ? [["custom", "Another size …"]] : []),
  ];
  const choose = (/** @type {string} */ value) => {
    screen.custom = value === "custom";
    if (value === "") screen.edit(() => (delete params.output_width, delete params.output_height));
    else if (value === "custom") {
      screen.resize(
        width ?? (screen.source.width || 1080),
        height ?? (screen.source.height || 1920),
      );
    } else {
      const [wide, high] = value.split("x").map(Number);
      screen.resize(wide, high);
    }
  };
  /** @type {(name: "output_width" | "output_height", label: string) => HTMLElement} */
  const side = (name, label) => {
    const control = h("input", {
      type: "number",
      id: name,
      min: 16,
      max: 7680,
      step: 2,
      value: params[name] ?? "",
    });
    control.addEventListener("change", () => {
      const value = Number(control.value);
      if (!(value > 0)) return screen.showSettings();
      if (name === "output_width") screen.resize(value, params.output_height);
      else screen.resize(params.output_width, value);
    });
    return field(label, control);
  };
  const now = custom ? "custom" : width === undefined ? "" : `${width}x${height}`;
  return [
    field("Size", select(now, sizes, choose, { id: "size" })),
    custom &&
      h("div", { class: "pair" }, side("output_width", "Width"), side("output_height", "Height")),
  ];
}

function mode(/** @type {NewExport} */ screen) {
  const { type, params } = screen.request;
  const now = params.export_mode ?? (type === "upscale" ? "QUALITY" : "FAST");
  const modes = [
    ["FAST", "Fast: resampled"],
    ["QUALITY", "Quality: Real-ESRGAN, slower"],
  ];
  const change = (/** @type {string} */ value) => screen.edit(() => (params.export_mode = value));
  return field("Mode", select(now, modes, change, { id: "mode" }));
}

function rate(/** @type {NewExport} */ screen) {
  const { params } = screen.request;
  const rates = [
    ["", "As the source"],
    ...[24, 25, 30, 50, 60].map((each) => [String(each), `${each} frames a second`]),
  ];
  const change = (/** @type {string} */ value) =>
    screen.edit(() => {
      if (value) params.target_fps = Number(value);
      else delete params.target_fps;
    });
  const now = String(params.target_fps ?? "");
  return field("Frame rate", select(now, rates, change, { id: "rate" }));
}

function sound(/** @type {NewExport} */ screen) {
  const { params } = screen.request;
  const control = h("input", {
    type: "checkbox",
    id: "sound",
    checked: params.include_audio !== false,
    onchange: () =>
      screen.edit(() => {
        if (control.checked) delete params.include_audio;
        else params.include_audio = false;
      }),
  });
  return h("label", { class: "check" }, control, "Sound");
}
