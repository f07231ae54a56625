// What is edited is the request itself, as it will be sent; these functions read and change its params. Nothing here touches the page.
//
// The geometry is the worker's own (gpu_worker/edits), so that the picture shows what will be made.

export const TYPES = [
  ["framing", "Crop", "A crop that moves, at the size you need"],
  ["upscale", "Upscale", "The same, through Real-ESRGAN"],
  ["overlay", "Highlight", "Spotlights and text on the picture"],
  ["annotate", "Clips", "The best moments, captioned and joined"],
  ["multi_clip", "Join", "Clips of several videos"],
];

export const SIZES = [
  [1080, 1920, "Portrait 9:16"],
  [1080, 1350, "Portrait 4:5"],
  [1080, 1080, "Square"],
  [1920, 1080, "Landscape 16:9"],
  [720, 1280, "Portrait 9:16, small"],
  [1280, 720, "Landscape 16:9, small"],
];

/** A new request of a type; what is common to all types is taken over from another one. */
export function fresh(type, from = null) {
  const { params: former = {}, type: before, input_key, ...about } = from ?? {};
  const { target_fps, include_audio, output_width, output_height, export_mode } = former;
  const params = { target_fps, include_audio };
  if (!keepsSize(type)) Object.assign(params, { output_width: output_width ?? 1080, output_height: output_height ?? 1920 });
  if (type !== "upscale") params.export_mode = before === "upscale" ? "FAST" : (export_mode ?? "FAST");
  if (hasCrop(type) && hasCrop(before))
    Object.assign(params, { crop_keyframes: former.crop_keyframes, interpolation: former.interpolation });
  if (isOneClip(type) && isOneClip(before)) Object.assign(params, { start_time: former.start_time, end_time: former.end_time });
  if (type === "overlay") Object.assign(params, { effect_type: "spotlight", highlight_regions: [], text_layers: [] });
  if (type === "annotate" || type === "multi_clip") params.clips = [];
  return { type, ...(input_key && type !== "multi_clip" && { input_key }), ...about, params: plain(params) };
}

const plain = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined && value !== null));

export const hasCrop = (type) => type === "framing" || type === "upscale";
export const isOneClip = (type) => hasCrop(type) || type === "overlay";
export const keepsSize = (type) => type === "overlay" || type === "annotate";

/** A job's params with moments for the frame numbers of its crop, where its result says how long a frame of the source is. */
export function timed(params, result) {
  if (!result || params.target_fps || !params.crop_keyframes) return params;
  const moment = ({ frame, ...key }) => (frame === undefined ? key : { ...key, time: round(frame / result.fps, 3) });
  return { ...params, crop_keyframes: params.crop_keyframes.map(moment) };
}

export const round = (value, digits) => Math.round(value * 10 ** digits) / 10 ** digits;

/** Output width : height of a request whose size is asked for. */
export const ratioOf = (params) => (params.output_width ?? 1080) / (params.output_height ?? 1920);

/** The largest centred box of a ratio. */
export function centred(ratio, width, height) {
  const w = Math.min(width, height * ratio);
  const h = w / ratio;
  return { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h };
}

/** The box moved, and if need be shrunk, into the picture. */
export function inside(box, width, height) {
  const [w, h] = [Math.min(box.width, width), Math.min(box.height, height)];
  return { x: clamp(box.x, 0, width - w), y: clamp(box.y, 0, height - h), width: w, height: h };
}

export const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

const BOX = ["x", "y", "width", "height"];

/** Where the crop is at a moment: in straight lines or on a Catmull-Rom spline between its keys, at rest outside them. */
export function cropAt(params, moment, width, height) {
  const keys = params.crop_keyframes ?? [];
  if (keys.length === 0) return centred(ratioOf(params), width, height);
  return inside(between(keys, moment, BOX, params.interpolation), width, height);
}

/** The ellipse of a highlight at a moment. */
export const ellipseAt = (region, moment) => ({
  ...region.keyframes[0],
  ...between(region.keyframes, moment, ["x", "y", "radius_x", "radius_y"]),
});

function between(keys, moment, names, interpolation = "linear") {
  const index = keys.findLastIndex((key) => key.time <= moment);
  if (index < 0) return keys[0];
  if (index === keys.length - 1) return keys[index];
  const [p1, p2] = [keys[index], keys[index + 1]];
  const t = (moment - p1.time) / (p2.time - p1.time);
  const mirrored = (near, far) => Object.fromEntries(names.map((name) => [name, 2 * near[name] - far[name]]));
  const p0 = keys[index - 1] ?? mirrored(p1, p2);
  const p3 = keys[index + 2] ?? mirrored(p2, p1);
  const value =
    interpolation === "catmull_rom"
      ? (name) =>
          0.5 *
          ((-t + 2 * t ** 2 - t ** 3) * p0[name] +
            (2 - 5 * t ** 2 + 3 * t ** 3) * p1[name] +
            (t + 4 * t ** 2 - 3 * t ** 3) * p2[name] +
            (t ** 3 - t ** 2) * p3[name])
      : (name) => p1[name] + (p2[name] - p1[name]) * t;
  return Object.fromEntries(names.map((name) => [name, value(name)]));
}

const SAME_MOMENT = 0.02; // half a frame at 25 a second: a key so near is the one that is meant

/** The index of the key at a moment, or -1. */
export const keyAt = (keys, moment) => keys.findIndex((key) => Math.abs(key.time - moment) <= SAME_MOMENT);

/** The keys with one at a moment set; in order of time. */
export function withKey(keys, moment, values) {
  const found = keyAt(keys, moment);
  const key = { ...(keys[found] ?? {}), ...values, time: found < 0 ? round(moment, 3) : keys[found].time };
  return [...keys.filter((_, index) => index !== found), key].sort((a, b) => a.time - b.time);
}

/** After another size was chosen: each crop keeps its centre and, as far as the picture allows, its area. */
export function refitted(keys, ratio, width, height) {
  return keys.map((key) => {
    const area = key.width * key.height;
    const w = Math.min(Math.sqrt(area * ratio), width, height * ratio);
    const box = { x: key.x + (key.width - w) / 2, y: key.y + (key.height - w / ratio) / 2, width: w, height: w / ratio };
    return { ...key, ...rounded(inside(box, width, height)) };
  });
}

/** In tenths of a pixel, and never beyond the picture for rounding. */
export const rounded = (box) => Object.fromEntries(Object.entries(box).map(([name, value]) => [name, Math.floor(value * 10 + 1e-6) / 10]));

/**
 * Which moment of the source each moment of the result shows: pieces of `seconds` of the result from `source` on, at a speed. Null
 * where the result is made of several videos, has transitions, or is not a part of the source's picture.
 */
export function pieces(type, params, duration) {
  if (type === "annotate" && !params.output_width && (params.transition?.type ?? "cut") === "cut") {
    return params.clips.map((clip) => ({ source: clip.start_time, seconds: clip.end_time - clip.start_time, speed: 1 }));
  }
  if (!isOneClip(type)) return null;
  const [start, end] = [params.start_time ?? 0, Math.min(params.end_time ?? duration, duration)];
  const cuts = [];
  let from = start;
  for (const segment of params.segments ?? []) {
    const [first, last] = [clamp(segment.start, start, end), clamp(segment.end ?? end, start, end)];
    if (first > from) cuts.push([from, first, 1]);
    if (last > first) cuts.push([first, last, segment.speed ?? 1]);
    from = Math.max(from, last);
  }
  if (end > from) cuts.push([from, end, 1]);
  return cuts.map(([first, last, speed]) => ({ source: first, seconds: (last - first) / speed, speed }));
}

/** The source's moment and speed for a moment of the result. */
export function sourceOf(map, moment) {
  for (const piece of map) {
    if (moment < piece.seconds) return { moment: piece.source + moment * piece.speed, speed: piece.speed };
    moment -= piece.seconds;
  }
  const last = map.at(-1);
  return last ? { moment: last.source + last.seconds * last.speed, speed: last.speed } : { moment: 0, speed: 1 };
}
