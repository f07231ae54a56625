// What of the edit lies on the picture and on the time line, and what moving it there changes in
// the request.

import { clock } from "./dom.js";
import { cropAt, ellipseAt, hasCrop, inside, isOneClip, keyAt, withKey } from "./edit.js";

/** @typedef {import("./new.js").NewExport} NewExport */

const MOVE = "Drag it, or use the arrow keys, plus and minus";

/** Whether crop keyframes are given by frame numbers, which a browser cannot turn into moments. */
export const byFrame = (/** @type {Params} */ params) =>
  (params.crop_keyframes ?? []).some((key) => key.time === undefined);

/**
 * Whether an overlay is cropped too: then its texts are placed on the result, and not on the
 * picture.
 */
export const isCropped = (/** @type {Params} */ params) =>
  Boolean(params.output_width || params.crop_keyframes?.length);

/**
 * What can be moved on the picture at this moment.
 * @returns {Item[]}
 */
export function items(/** @type {NewExport} */ screen) {
  const { type, params } = screen.request;
  if (!screen.source?.width) return [];
  if (hasCrop(type)) return byFrame(params) ? [] : [crop(screen)];
  if (type !== "overlay") return [];
  const regions = there(screen, params.highlight_regions).map(([region, index]) =>
    highlight(screen, region, index),
  );
  const texts = isCropped(params)
    ? []
    : there(screen, params.text_layers).filter(([layer]) => layer.text);
  return [...regions, ...texts.map(([layer, index]) => text(screen, layer, index))];
}

/** Effects that darken, and how much they do without a strength of their own (docs/effects.md). */
const DARKENED = new Map([
  ["spotlight", 0.7],
  ["dark_overlay", 0.3],
]);

/** How much darker than the picture it is beside the highlights. */
export function veil(/** @type {ExportRequest} */ { type, params }) {
  const usual = type === "overlay" ? DARKENED.get(params.effect_type ?? "") : undefined;
  return usual === undefined ? 0 : (params.effect_strength ?? usual);
}

/** @returns {Item} */
function crop(/** @type {NewExport} */ screen) {
  const { width, height } = screen.source;
  const geometry = cropAt(screen.request.params, screen.moment, width, height);
  return {
    id: "crop",
    shape: "box",
    label: `Crop. ${MOVE}`,
    geometry,
    change: (box) => setCrop(screen, box),
  };
}

/** Sets where the crop is at this moment; it stays within the picture. */
export function setCrop(/** @type {NewExport} */ screen, /** @type {Box} */ box) {
  const { params } = screen.request;
  const { width, height } = screen.source;
  screen.edit(
    () =>
      (params.crop_keyframes = withKey(
        params.crop_keyframes ?? [],
        screen.moment,
        inside(box, width, height),
      )),
  );
}

/**
 * @param {NewExport} screen
 * @param {Region} region
 * @param {number} index
 * @returns {Item}
 */
function highlight(screen, region, index) {
  const [x, y] = unit(screen, region);
  const ellipse = ellipseAt(region, screen.moment);
  const geometry = {
    x: ellipse.x * x,
    y: ellipse.y * y,
    radius_x: ellipse.radius_x * x,
    radius_y: ellipse.radius_y * y,
  };
  const change = (/** @type {Ellipse} */ g) => {
    const key = {
      ...ellipse,
      x: g.x / x,
      y: g.y / y,
      radius_x: g.radius_x / x,
      radius_y: g.radius_y / y,
    };
    screen.chosen = index;
    screen.edit(() => (region.keyframes = withKey(region.keyframes, screen.moment, key)));
  };
  return {
    id: `region-${index}`,
    shape: "ellipse",
    label: `Highlight ${index + 1}. ${MOVE}`,
    geometry,
    change,
  };
}

/**
 * @param {NewExport} screen
 * @param {TextLayer} layer
 * @param {number} index
 * @returns {Item}
 */
function text(screen, layer, index) {
  const [x, y] = unit(screen, layer);
  const geometry = {
    x: (layer.x ?? 0) * x,
    y: (layer.y ?? 0) * y,
    font_size: (layer.font_size ?? 48) * y,
  };
  const change = (/** @type {Lettering} */ g) =>
    screen.edit(() => Object.assign(layer, { x: g.x / x, y: g.y / y, font_size: g.font_size / y }));
  return {
    id: `text-${index}`,
    shape: "text",
    text: layer.text ?? "",
    anchor: layer.anchor ?? "top_left",
    label: `Text ${index + 1}. ${MOVE}`,
    geometry,
    change,
  };
}

/**
 * How many pixels of the source one of a thing's own is: it may have been placed on a preview of
 * another size.
 * @param {NewExport} screen
 * @param {Region | TextLayer} placed
 */
const unit = (screen, { video_width, video_height }) => [
  video_width ? screen.source.width / video_width : 1,
  video_height ? screen.source.height / video_height : 1,
];

/**
 * Those of a list that are on the picture at this moment, with their numbers.
 * @template {{start_time?: number, end_time?: number}} Timed
 * @param {NewExport} screen
 * @param {Timed[]} list
 * @returns {[Timed, number][]}
 */
function there(screen, list = []) {
  return list.flatMap((each, index) => {
    const { start_time: start = 0, end_time: end = Infinity } = each;
    const shown = screen.moment >= start - 0.001 && screen.moment <= end + 0.001;
    return shown ? [/** @type {[Timed, number]} */ ([each, index])] : [];
  });
}

/**
 * Sets a key where the crop is anyway, so that it stays there while others move; or the chosen
 * highlight.
 */
export function addKey(/** @type {NewExport} */ screen) {
  const wanted = hasCrop(screen.request.type) ? "crop" : `region-${screen.chosen}`;
  const item = items(screen).find(({ id }) => id === wanted);
  if (item?.shape === "box") item.change(item.geometry);
  if (item?.shape === "ellipse") item.change(item.geometry);
}

/** Removes the key at this moment; a highlight keeps its last one. */
export function removeKey(/** @type {NewExport} */ screen) {
  const keys = keysOf(screen);
  const index = keyAt(keys, screen.moment);
  if (index >= 0 && (hasCrop(screen.request.type) || keys.length > 1)) {
    screen.edit(() => keys.splice(index, 1));
  }
}

/** @returns {(CropKey | EllipseKey)[]} */
function keysOf(/** @type {NewExport} */ { request: { type, params }, chosen }) {
  return (
    (hasCrop(type) ? params.crop_keyframes : params.highlight_regions?.[chosen]?.keyframes) ?? []
  );
}

/**
 * What lies on the time line.
 * @returns {Marks}
 */
export function marks(/** @type {NewExport} */ screen) {
  const { type, params } = screen.request;
  /** @typedef {{start_time?: number, end_time?: number, name?: string, text?: string}} Lasting */
  const bar = (/** @type {Lasting} */ one, /** @type {string} */ label) => ({
    from: one.start_time ?? 0,
    to: one.end_time ?? screen.timeline.duration,
    label,
  });
  const bars = (/** @type {Lasting[] | undefined} */ list, /** @type {string} */ kind) =>
    (list ?? []).map((one, index) => bar(one, one.name || one.text || `${kind} ${index + 1}`));
  const here = params.clips?.filter(
    (clip) => (clip.input_key ?? screen.source.key) === screen.source.key,
  );
  const keys = keysOf(screen).filter((key) => key.time !== undefined);
  return {
    from: isOneClip(type) ? (params.start_time ?? 0) : 0,
    to: isOneClip(type) ? params.end_time : undefined,
    keys: keys.map((key) => ({ time: key.time, label: `Keyframe at ${clock(key.time)}` })),
    bars: [
      ...bars(params.highlight_regions, "Highlight"),
      ...bars(params.text_layers, "Text"),
      ...bars(here, "Clip"),
    ],
  };
}
