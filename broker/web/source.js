// A video that is edited: a file of the user's own, on its way into the bucket, or one that lies
// there already.

import { objectUrl } from "./api.js";
import { bytes, clock, h, nameOf } from "./dom.js";
import { Upload } from "./upload.js";

let count = 0;

export class Source {
  /**
   * @param {string} name
   * @param {string} key
   * @param {string} url
   */
  constructor(name, key, url) {
    this.name = name;
    this.key = key;
    this.url = url;
    /** @type {Upload | null} */
    this.upload = null;
    /** @type {string | null} */
    this.standIn = null;
    this.size = 0;
    this.width = 0;
    this.height = 0;
    this.duration = 0;
    /** @type {boolean | null} */
    this.playable = null;
  }

  /**
   * A file, which is uploaded at once; until the broker has given it a key, it has a stand-in.
   * @param {File} file
   * @param {(source: Source) => void} onchange called as it goes on
   */
  static from(file, onchange) {
    const standIn = `uploads/pending-${(count += 1)}/${file.name}`;
    const source = new Source(file.name, standIn, URL.createObjectURL(file));
    source.standIn = standIn;
    source.size = file.size;
    source.upload = new Upload(file, () => onchange(source));
    return source;
  }

  /** One that lies in the bucket; raises Problem where it does not. */
  static async at(/** @type {string} */ key) {
    return new Source(nameOf(key), key, await objectUrl(key));
  }

  get isThere() {
    return !this.upload || this.upload.state === "done";
  }

  get isLost() {
    return this.upload?.state === "failed";
  }

  /** Learns from the player what it is; a player that cannot show it says 0. */
  learn(/** @type {HTMLVideoElement} */ { videoWidth, videoHeight, duration }) {
    this.width = videoWidth;
    this.height = videoHeight;
    this.duration = Number.isFinite(duration) ? duration : 0;
    this.playable = videoWidth > 0;
  }

  /** Lets go of the file, and of what has arrived of it unless that is `kept`. */
  close(kept = false) {
    if (!this.upload) return;
    if (kept) this.upload.stop();
    else this.upload.abandon();
    URL.revokeObjectURL(this.url);
  }

  /**
   * Shows it in a list.
   * @param {number} index
   * @param {boolean | null} shown whether it is the one on the picture; null where it is alone
   * @param {{show: () => void, remove: () => void}} act
   */
  row(index, shown, { show, remove }) {
    this.shownState = this.upload?.state;
    const facts = [
      this.size ? bytes(this.size) : "",
      this.width ? `${this.width} × ${this.height}` : "",
      this.duration ? clock(this.duration) : "",
    ];
    return h(
      "li",
      { class: shown && "shown" },
      h(
        "div",
        { class: "row" },
        h(
          "span",
          { class: "grow" },
          h("strong", {}, this.name),
          h("small", {}, facts.filter(Boolean).join(" · ")),
        ),
        shown === false && h("button", { id: `show-${index}`, onclick: show }, "Show"),
        h(
          "button",
          { id: `remove-${index}`, "aria-label": `Remove ${this.name}`, onclick: remove },
          "Remove",
        ),
      ),
      this.isThere ? null : this.progress(),
      this.isLost &&
        h(
          "p",
          { class: "alert", role: "alert" },
          this.upload?.error,
          " ",
          h("button", { id: `again-${index}`, onclick: () => this.upload?.run() }, "Go on"),
        ),
      this.playable === false &&
        h(
          "p",
          { class: "note" },
          "This browser cannot play the file, so nothing can be drawn on it. It can be exported " +
            "all the same.",
        ),
    );
  }

  progress() {
    this.bar = h("progress", { class: "grow", max: 1, "aria-label": `Upload of ${this.name}` });
    this.percent = h("small", {});
    this.advanced();
    return h("div", { class: "row" }, this.bar, this.percent);
  }

  /**
   * Shows how far the upload is where it is shown already; false where there is more to show than
   * that.
   */
  advanced() {
    if (!this.bar || !this.percent || this.upload?.state !== "sending") return false;
    const share = this.upload.sent / this.size;
    this.bar.value = share;
    this.percent.textContent = `${Math.floor(100 * share)} % of ${bytes(this.size)}`;
    return this.shownState === this.upload.state;
  }
}
