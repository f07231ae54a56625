// Before and after: the source as it was and the result, at the same moment, under one scrubber.

import { h, set } from "./dom.js";
import { cropAt, hasCrop, pieces, sourceOf } from "./edit.js";
import { isCropped } from "./picture.js";
import { Timeline } from "./timeline.js";

const DRIFT = 0.08; // seconds that the two may be apart while they play

export class Compare {
  /** @param params the job's, with moments; @param urls {before, after}; `before` is null where it cannot be shown beside the result */
  constructor(job, params, urls) {
    Object.assign(this, { job, params });
    this.after = h("video", { playsinline: true, preload: "auto", src: urls.after, tabindex: "-1", "aria-label": "The result" });
    this.timeline = new Timeline(
      this.after,
      () => ({ from: 0, to: undefined, keys: [], bars: [] }),
      () => this.sync(),
    );
    this.after.addEventListener("loadedmetadata", () => this.timeline.draw());
    const { width, height } = job.result;
    const wiped = { class: "wiped", style: { "--ratio": `${width} / ${height}`, "--wide": width / height } };
    this.pair = h("div", wiped, h("div", { class: "after" }, this.after, h("span", { class: "tag right" }, "Result")));
    this.element = h("figure", { class: "compare" }, this.pair, this.timeline.element);
    if (urls.before) this.addBefore(urls.before);
  }

  addBefore(url) {
    this.before = h("video", { playsinline: true, preload: "auto", src: url, tabindex: "-1", "aria-label": "The source" });
    this.before.muted = true;
    this.outline = h("div", { class: "outline" });
    this.pair.prepend(h("div", { class: "before" }, this.before, this.outline, h("span", { class: "tag" }, "Source")));
    this.wipe = h("input", {
      type: "range",
      class: "wipe",
      min: 0,
      max: 100,
      value: 50,
      "aria-label": "How much of the source is shown",
      oninput: () => this.show(),
    });
    this.pair.append(this.wipe, h("div", { class: "edge", "aria-hidden": "true" }));
    const buttons = [
      ["wiped", "Wipe"],
      ["beside", "Side by side"],
    ].map(([way, text]) =>
      h("button", { "data-way": way, "aria-pressed": String(way === "wiped"), onclick: () => this.lay(way, buttons) }, text),
    );
    this.element.append(h("div", { class: "tabs", role: "group", "aria-label": "Compare" }, buttons));
    for (const [name, act] of [
      ["play", () => this.before.play().catch(() => {})],
      ["pause", () => this.before.pause()],
    ])
      this.after.addEventListener(name, act);
    this.before.addEventListener("loadedmetadata", () => this.known());
    this.before.addEventListener("error", () => this.before.src && this.element.classList.add("alone"));
    this.show();
  }

  /** Has the browser fetch no more of the videos. */
  close() {
    for (const video of [this.after, this.before].filter(Boolean)) {
      video.removeAttribute("src");
      video.load();
    }
  }

  known() {
    this.map = pieces(this.job.type, this.params, this.before.duration);
    this.before.parentElement.style.setProperty("--whole", `${this.before.videoWidth} / ${this.before.videoHeight}`);
    this.sync();
  }

  lay(way, buttons) {
    this.pair.className = way;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.way === way));
    this.sync();
  }

  show() {
    this.pair.style.setProperty("--wipe", `${this.wipe.value}%`);
    set(this.wipe, { "aria-valuetext": `${this.wipe.value} percent` });
  }

  /** Brings the source to the moment that the result shows, and lays the part of it that was kept under the result. */
  sync() {
    if (!this.map?.length) return;
    const { moment, speed } = sourceOf(this.map, this.after.currentTime);
    if (this.after.paused || Math.abs(this.before.currentTime - moment) > DRIFT) {
      if (Math.abs(this.before.currentTime - moment) > 0.001) this.before.currentTime = moment;
    }
    this.before.playbackRate = speed;
    const { params } = this;
    const [width, height] = [this.before.videoWidth, this.before.videoHeight];
    const box = hasCrop(this.job.type) || isCropped(params) ? cropAt(params, moment, width, height) : { x: 0, y: 0, width, height };
    const share = (part, whole) => `${(100 * part) / whole}%`;
    const beside = this.pair.className === "beside";
    set(this.before, {
      style: beside
        ? { left: "0", top: "0", width: "100%", height: "100%" }
        : {
            left: share(-box.x, box.width),
            top: share(-box.y, box.height),
            width: share(width, box.width),
            height: share(height, box.height),
          },
    });
    set(this.outline, {
      style: { left: share(box.x, width), top: share(box.y, height), width: share(box.width, width), height: share(box.height, height) },
    });
  }
}
