// Before and after: the source as it was and the result, at the same moment, under one scrubber.

import { h, set } from "./dom.js";
import { cropAt, hasCrop, pieces, sourceOf } from "./edit.js";
import { isCropped } from "./picture.js";
import { Timeline } from "./timeline.js";

/** Seconds that the two may be apart while they play. */
const DRIFT = 0.08;
/** @type {[string, string][]} */
const WAYS = [
  ["wiped", "Wipe"],
  ["beside", "Side by side"],
];

/**
 * The source's part of a comparison.
 * @typedef {{
 *   video: HTMLVideoElement, outline: HTMLElement, wipe: HTMLInputElement, map: Piece[] | null,
 * }} Before
 */

export class Compare {
  /**
   * @param {Job & {result: Result}} job
   * @param {Params} params the job's, with moments
   * @param {{before: string | null, after: string}} urls `before` is null where it cannot be shown
   *   beside the result
   */
  constructor(job, params, urls) {
    this.job = job;
    this.params = params;
    /** @type {Before | null} */
    this.before = null;
    this.after = h("video", {
      playsinline: true,
      preload: "auto",
      src: urls.after,
      tabindex: "-1",
      "aria-label": "The result",
    });
    this.timeline = new Timeline(
      this.after,
      () => ({ from: 0, to: undefined, keys: [], bars: [] }),
      () => this.sync(),
    );
    this.after.addEventListener("loadedmetadata", () => this.timeline.draw());
    const { width, height } = job.result;
    const wiped = {
      class: "wiped",
      style: { "--ratio": `${width} / ${height}`, "--wide": width / height },
    };
    this.pair = h(
      "div",
      wiped,
      h("div", { class: "after" }, this.after, h("span", { class: "tag right" }, "Result")),
    );
    this.element = h("figure", { class: "compare" }, this.pair, this.timeline.element);
    if (urls.before) this.addBefore(urls.before);
  }

  addBefore(/** @type {string} */ url) {
    const video = h("video", {
      playsinline: true,
      preload: "auto",
      src: url,
      tabindex: "-1",
      "aria-label": "The source",
    });
    video.muted = true;
    const outline = h("div", { class: "outline" });
    this.pair.prepend(
      h("div", { class: "before" }, video, outline, h("span", { class: "tag" }, "Source")),
    );
    const wipe = h("input", {
      type: "range",
      class: "wipe",
      min: 0,
      max: 100,
      value: 50,
      "aria-label": "How much of the source is shown",
      oninput: () => this.show(before),
    });
    const before = (this.before = { video, outline, wipe, map: null });
    this.pair.append(wipe, h("div", { class: "edge", "aria-hidden": "true" }));
    /** @type {HTMLButtonElement[]} */
    const buttons = WAYS.map(([way, text]) =>
      h(
        "button",
        {
          "data-way": way,
          "aria-pressed": String(way === "wiped"),
          onclick: () => this.lay(way, buttons),
        },
        text,
      ),
    );
    this.element.append(
      h("div", { class: "tabs", role: "group", "aria-label": "Compare" }, buttons),
    );
    this.after.addEventListener("play", () => video.play().catch(() => {}));
    this.after.addEventListener("pause", () => video.pause());
    video.addEventListener("loadedmetadata", () => this.known(before));
    video.addEventListener("error", () => video.src && this.element.classList.add("alone"));
    this.show(before);
  }

  /** Has the browser fetch no more of the videos. */
  close() {
    for (const video of [this.after, this.before?.video]) {
      video?.removeAttribute("src");
      video?.load();
    }
  }

  known(/** @type {Before} */ before) {
    const { video } = before;
    before.map = pieces(this.job.type, this.params, video.duration);
    const whole = `${video.videoWidth} / ${video.videoHeight}`;
    video.parentElement?.style.setProperty("--whole", whole);
    this.sync();
  }

  lay(/** @type {string} */ way, /** @type {HTMLButtonElement[]} */ buttons) {
    this.pair.className = way;
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.way === way));
    }
    this.sync();
  }

  show(/** @type {Before} */ { wipe }) {
    this.pair.style.setProperty("--wipe", `${wipe.value}%`);
    set(wipe, { "aria-valuetext": `${wipe.value} percent` });
  }

  /**
   * Brings the source to the moment that the result shows, and lays the part of it that was kept
   * under the result.
   */
  sync() {
    if (!this.before?.map?.length) return;
    const { map, video, outline } = this.before;
    const { moment, speed } = sourceOf(map, this.after.currentTime);
    const apart = Math.abs(video.currentTime - moment);
    if (apart > (this.after.paused ? 0.001 : DRIFT)) video.currentTime = moment;
    video.playbackRate = speed;
    const { params } = this;
    const [width, height] = [video.videoWidth, video.videoHeight];
    const box =
      hasCrop(this.job.type) || isCropped(params)
        ? cropAt(params, moment, width, height)
        : { x: 0, y: 0, width, height };
    const share = (/** @type {number} */ part, /** @type {number} */ whole) =>
      `${(100 * part) / whole}%`;
    const beside = this.pair.className === "beside";
    set(video, {
      style: beside
        ? { left: "0", top: "0", width: "100%", height: "100%" }
        : {
            left: share(-box.x, box.width),
            top: share(-box.y, box.height),
            width: share(width, box.width),
            height: share(height, box.height),
          },
    });
    set(outline, {
      style: {
        left: share(box.x, width),
        top: share(box.y, height),
        width: share(box.width, width),
        height: share(box.height, height),
      },
    });
  }
}
