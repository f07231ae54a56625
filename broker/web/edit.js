// What is edited is the request itself, as it will be sent; these functions read and change its
// params. Nothing here touches the page.
//
// The geometry is the worker's own (gpu_worker/edits), so that the picture shows what will be made.

/** @type {[JobType, string, string][]} */
export const TYPES = [
  ["framing", "Crop", "A crop that moves, at the size you need"],
  ["upscale", "Upscale", "The same, through Real-ESRGAN"],
  ["overlay", "Highlight", "Spotlights and text on the picture"],
  ["annotate", "Clips", "The best moments, captioned and joined"],
  ["multi_clip", "Join", "Clips of several videos"],
];

/** The entry of a type in TYPES. */
export const typeNamed = (/** @type {JobType} */ type) => {
  const [, name, about] = TYPES.find(([each]) => each === type) ?? [type, type, ""];
  return { name, about };
};

/** @type {[number, number, string][]} */
export const SIZES = [
  [1080, 1920, "Portrait 9:16"],
  [1080, 1350, "Portrait 4:5"],
  [1080, 1080, "Square"],
  [1920, 1080, "Landscape 16:9"],
  [720, 1280, "Portrait 9:16, small"],
  [1280, 720, "Landscape 16:9, small"],
];

/**
 * A new request of a type; what is common to all types is taken over from another one.
 * @param {JobType} type
 * @param {ExportRequest | null} from
 * @returns {ExportRequest}
 */
export function fresh(type, from = null) {
  const { params: former = {}, type: before, input_key, ...about } = from ?? {};
  return {
    type,
    ...(input_key && type !== "multi_clip" && { input_key }),
    ...about,
    params: plain({
      target_fps: former.target_fps,
      include_audio: former.include_audio,
      ...sizeAndMode(type, before, former),
      ...kept(type, before, former),
      ...begun(type),
    }),
  };
}

/**
 * @param {JobType} type
 * @param {JobType | undefined} before
 * @param {Params} former
 */
function sizeAndMode(type, before, former) {
  /** @type {Params} */
  const params = {};
  if (!keepsSize(type)) {
    params.output_width = former.output_width ?? 1080;
    params.output_height = former.output_height ?? 1920;
  }
  if (type !== "upscale") {
    params.export_mode = before === "upscale" ? "FAST" : (former.export_mode ?? "FAST");
  }
  return params;
}

/**
 * What stays of the edit when the type changes: the crop, and where the clip begins and ends.
 * @param {JobType} type
 * @param {JobType | undefined} before
 * @param {Params} former
 * @returns {Params}
 */
function kept(type, before, former) {
  const { crop_keyframes, interpolation, start_time, end_time } = former;
  return {
    ...(hasCrop(type) && hasCrop(before) && { crop_keyframes, interpolation }),
    ...(isOneClip(type) && isOneClip(before) && { start_time, end_time }),
  };
}

/**
 * The lists that an edit of a type begins with.
 * @param {JobType} type
 * @returns {Params}
 */
function begun(type) {
  if (type === "overlay") {
    return { effect_type: "spotlight", highlight_regions: [], text_layers: [] };
  }
  return type === "annotate" || type === "multi_clip" ? { clips: [] } : {};
}

const plain = (/** @type {Params} */ object) =>
  Object.fromEntries(
    Object.entries(object).filter(([, value]) => value !== undefined && value !== null),
  );

export const hasCrop = (/** @type {JobType | undefined} */ type) =>
  type === "framing" || type === "upscale";
export const isOneClip = (/** @type {JobType | undefined} */ type) =>
  hasCrop(type) || type === "overlay";
export const keepsSize = (/** @type {JobType} */ type) => type === "overlay" || type === "annotate";

/**
 * A job's params with moments for the frame numbers of its crop, where its result says how long a
 * frame of the source is.
 * @param {Params} params
 * @param {Result | null} result
 */
export function timed(params, result) {
  if (!result || params.target_fps || !params.crop_keyframes) return params;
  const moment = (/** @type {GivenCropKey} */ { frame, time, ...box }) =>
    frame === undefined ? { ...box, time } : { ...box, time: round(frame / result.fps, 3) };
  const keys = /** @type {CropKey[]} */ (params.crop_keyframes.map(moment));
  return { ...params, crop_keyframes: keys };
}

export const round = (/** @type {number} */ value, /** @type {number} */ digits) =>
  Math.round(value * 10 ** digits) / 10 ** digits;

/** Output width : height of a request whose size is asked for. */
export const ratioOf = (/** @type {Params} */ params) =>
  (params.output_width ?? 1080) / (params.output_height ?? 1920);

/**
 * The largest centred box of a ratio.
 * @param {number} ratio
 * @param {number} width
 * @param {number} height
 * @returns {Box}
 */
export function centred(ratio, width, height) {
  const w = Math.min(width, height * ratio);
  const h = w / ratio;
  return { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h };
}

/**
 * The box moved, and if need be shrunk, into the picture.
 * @param {Box} box
 * @param {number} width
 * @param {number} height
 * @returns {Box}
 */
export function inside(box, width, height) {
  const [w, h] = [Math.min(box.width, width), Math.min(box.height, height)];
  return { x: clamp(box.x, 0, width - w), y: clamp(box.y, 0, height - h), width: w, height: h };
}

/** @type {(value: number, least: number, most: number) => number} */
export const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/** @type {(keyof Box)[]} */
const BOX = ["x", "y", "width", "height"];
/** @type {(keyof Ellipse)[]} */
const ELLIPSE = ["x", "y", "radius_x", "radius_y"];

/**
 * Where the crop is at a moment: in straight lines or on a clamped Catmull-Rom spline between its
 * keys, at rest outside them.
 * @param {Params} params
 * @param {number} moment
 * @param {number} width
 * @param {number} height
 */
export function cropAt(params, moment, width, height) {
  const keys = params.crop_keyframes ?? [];
  if (keys.length === 0) return centred(ratioOf(params), width, height);
  return inside(between(keys, moment, BOX, params.interpolation), width, height);
}

/**
 * The ellipse of a highlight at a moment.
 * @param {Region} region
 * @param {number} moment
 * @returns {EllipseKey}
 */
export const ellipseAt = (region, moment) => ({
  ...region.keyframes[0],
  ...between(region.keyframes, moment, ELLIPSE),
});

/**
 * @template {string} Name
 * @template {Record<Name, number> & {time: number}} Key
 * @param {Key[]} keys
 * @param {number} moment
 * @param {Name[]} names
 * @param {string} interpolation
 * @returns {Record<Name, number>}
 */
function between(keys, moment, names, interpolation = "linear") {
  const index = keys.findLastIndex((key) => key.time <= moment);
  if (index < 0) return keys[0];
  if (index === keys.length - 1) return keys[index];
  const [p1, p2] = [keys[index], keys[index + 1]];
  const t = (moment - p1.time) / (p2.time - p1.time);
  /** @type {(value: (name: Name) => number) => Record<Name, number>} */
  const each = (value) =>
    /** @type {Record<Name, number>} */ (
      Object.fromEntries(names.map((name) => [name, value(name)]))
    );
  const mirrored = (/** @type {Key} */ near, /** @type {Key} */ far) =>
    each((name) => 2 * near[name] - far[name]);
  const p0 = keys[index - 1] ?? mirrored(p1, p2);
  const p3 = keys[index + 2] ?? mirrored(p2, p1);
  if (interpolation !== "catmull_rom") return each((name) => p1[name] + (p2[name] - p1[name]) * t);
  return each((name) => spline(t, p0[name], p1[name], p2[name], p3[name]));
}

/**
 * The worker's rule (gpu_worker/edits/crop.py): Catmull-Rom with tangents that are clamped, so that
 * the crop never leaves what two keys span.
 * @param {number} t
 * @param {number} before
 * @param {number} begin
 * @param {number} end
 * @param {number} after
 */
function spline(t, before, begin, end, after) {
  const way = end - begin;
  const leaving = tangent(begin - before, way);
  const arriving = tangent(way, after - end);
  return (
    begin + way * t * t * (3 - 2 * t) + leaving * t * (1 - t) ** 2 - arriving * t * t * (1 - t)
  );
}

/** @type {(before: number, after: number) => number} */
function tangent(before, after) {
  if (before * after <= 0) return 0;
  const steepest = 3 * Math.min(Math.abs(before), Math.abs(after));
  return Math.sign(before) * Math.min(Math.abs(before + after) / 2, steepest);
}

/** Half a frame at 25 a second: a key so near is the one that is meant. */
const SAME_MOMENT = 0.02;

/**
 * The index of the key at a moment, or -1.
 * @param {{time: number}[]} keys
 * @param {number} moment
 */
export const keyAt = (keys, moment) =>
  keys.findIndex((key) => Math.abs(key.time - moment) <= SAME_MOMENT);

/**
 * The keys with one at a moment set; in order of time.
 * @template {{time: number}} Key
 * @param {Key[]} keys
 * @param {number} moment
 * @param {Omit<Key, "time">} values
 * @returns {Key[]}
 */
export function withKey(keys, moment, values) {
  const found = keyAt(keys, moment);
  const time = found < 0 ? round(moment, 3) : keys[found].time;
  const key = /** @type {Key} */ ({ ...keys[found], ...values, time });
  return [...keys.filter((_, index) => index !== found), key].sort((a, b) => a.time - b.time);
}

/**
 * After another size was chosen: each crop keeps its centre and, as far as the picture allows, its
 * area.
 * @param {CropKey[]} keys
 * @param {number} ratio
 * @param {number} width
 * @param {number} height
 * @returns {CropKey[]}
 */
export function refitted(keys, ratio, width, height) {
  return keys.map((key) => {
    const area = key.width * key.height;
    const w = Math.min(Math.sqrt(area * ratio), width, height * ratio);
    const box = {
      x: key.x + (key.width - w) / 2,
      y: key.y + (key.height - w / ratio) / 2,
      width: w,
      height: w / ratio,
    };
    return { ...key, ...rounded(inside(box, width, height)) };
  });
}

/**
 * In tenths of a pixel, and never beyond the picture for rounding.
 * @template {object} Geometry
 * @param {Geometry} box
 */
export const rounded = (box) =>
  /** @type {Geometry} */ (
    Object.fromEntries(
      Object.entries(box).map(([name, value]) => [name, Math.floor(value * 10 + 1e-6) / 10]),
    )
  );

/**
 * Which moment of the source each moment of the result shows. Null where the result is made of
 * several videos, has transitions, or is not a part of the source's picture.
 * @param {JobType} type
 * @param {Params} params
 * @param {number} duration
 * @returns {Piece[] | null}
 */
export function pieces(type, params, duration) {
  if (type === "annotate" && !params.output_width && (params.transition?.type ?? "cut") === "cut") {
    return (params.clips ?? []).map((clip) => ({
      source: clip.start_time,
      seconds: (clip.end_time ?? duration) - clip.start_time,
      speed: 1,
    }));
  }
  return isOneClip(type) ? segments(params, duration) : null;
}

/**
 * @param {Params} params
 * @param {number} duration
 */
function segments(params, duration) {
  const [start, end] = [params.start_time ?? 0, Math.min(params.end_time ?? duration, duration)];
  /** @type {[number, number, number][]} */
  const cuts = [];
  let from = start;
  for (const segment of params.segments ?? []) {
    const [first, last] = [clamp(segment.start, start, end), clamp(segment.end ?? end, start, end)];
    if (first > from) cuts.push([from, first, 1]);
    if (last > first) cuts.push([first, last, segment.speed ?? 1]);
    from = Math.max(from, last);
  }
  if (end > from) cuts.push([from, end, 1]);
  return cuts.map(([first, last, speed]) => ({
    source: first,
    seconds: (last - first) / speed,
    speed,
  }));
}

/**
 * The source's moment and speed for a moment of the result.
 * @param {Piece[]} map
 * @param {number} moment
 */
export function sourceOf(map, moment) {
  let rest = moment;
  for (const piece of map) {
    if (rest < piece.seconds) {
      return { moment: piece.source + rest * piece.speed, speed: piece.speed };
    }
    rest -= piece.seconds;
  }
  const last = map.at(-1);
  return last
    ? { moment: last.source + last.seconds * last.speed, speed: last.speed }
    : { moment: 0, speed: 1 };
}
