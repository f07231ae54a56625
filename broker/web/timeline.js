// Under the picture: play, step, seek, and when things happen.

import { clock, fill, h, set } from "./dom.js";

const FRAME = 1 / 25;

export class Timeline {
  /**
   * @param {HTMLVideoElement} video whose time this is
   * @param {() => Marks} marks returns the part that is kept, and what lies on it
   * @param {(moment: number) => void} onmoment called whenever another moment is shown
   */
  constructor(video, marks, onmoment) {
    this.video = video;
    this.marks = marks;
    this.onmoment = onmoment;
    /** @type {number | undefined} */
    this.wanted = undefined;
    this.button = h(
      "button",
      { class: "round", "aria-label": "Play", onclick: () => this.toggle() },
      "▶",
    );
    this.now = h("output", { class: "moment" }, "0:00.0");
    this.range = h("input", {
      type: "range",
      min: 0,
      step: FRAME,
      "aria-label": "Moment",
      oninput: () => this.seek(Number(this.range.value)),
    });
    this.track = h("div", { class: "track" });
    this.element = h(
      "div",
      { class: "timeline" },
      h(
        "div",
        { class: "transport" },
        this.button,
        this.step(-1, "‹", "A frame back"),
        this.step(1, "›", "A frame on"),
        this.now,
      ),
      h("div", { class: "line" }, this.track, this.range),
    );
    for (const name of ["play", "pause", "ended"]) {
      video.addEventListener(name, () => this.playing());
    }
    for (const name of ["seeked", "loadedmetadata", "timeupdate"]) {
      video.addEventListener(name, () => this.show());
    }
  }

  /**
   * @param {1 | -1} way
   * @param {string} sign
   * @param {string} label
   */
  step(way, sign, label) {
    return h(
      "button",
      { class: "round", "aria-label": label, onclick: () => this.seek(this.moment + way * FRAME) },
      sign,
    );
  }

  get moment() {
    return this.wanted ?? this.video.currentTime;
  }

  get duration() {
    return Number.isFinite(this.video.duration) ? this.video.duration : 0;
  }

  toggle() {
    if (this.video.paused) this.video.play().catch(() => {});
    else this.video.pause();
  }

  seek(/** @type {number} */ moment) {
    this.wanted = Math.min(Math.max(0, moment), this.duration);
    this.video.currentTime = this.wanted;
    this.show();
    this.wanted = undefined;
  }

  playing() {
    const paused = this.video.paused;
    fill(this.button, paused ? "▶" : "❚❚");
    set(this.button, { "aria-label": paused ? "Play" : "Pause" });
    const each = () => {
      this.show();
      if (!this.video.paused && this.element.isConnected) requestAnimationFrame(each);
    };
    each();
  }

  show() {
    const moment = this.moment;
    this.now.textContent = `${clock(moment)} / ${clock(this.duration)}`;
    set(this.range, {
      max: this.duration,
      value: moment,
      "aria-valuetext": `${moment.toFixed(2)} seconds`,
    });
    this.onmoment(moment);
  }

  /** Draws what lies on the time line. */
  draw() {
    const { from, to, keys, bars } = this.marks();
    const at = (/** @type {number} */ seconds) =>
      `${(100 * Math.min(seconds, this.duration || 1)) / (this.duration || 1)}%`;
    const span = (/** @type {number} */ first, /** @type {number} */ last) => ({
      left: at(first),
      width: `calc(${at(last)} - ${at(first)})`,
    });
    fill(
      this.track,
      h("span", { class: "kept", style: span(from, to ?? this.duration) }),
      bars.map((bar) =>
        h("span", { class: "bar", style: span(bar.from, bar.to), title: bar.label }),
      ),
      keys.map((key, index) =>
        h("button", {
          id: `key-${index}`,
          class: "key",
          style: { left: at(key.time) },
          "aria-label": key.label,
          title: key.label,
          onclick: () => this.seek(key.time),
        }),
      ),
    );
  }
}
