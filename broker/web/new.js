// New export: a video in, its edit on the picture, the request that comes of it, and off it goes.

import { ask, Problem, uuid } from "./api.js";
import { clock, dollars, fill, h, lasting, tell } from "./dom.js";
import { cropAt, ellipseAt, fresh, hasCrop, isOneClip, keyAt, ratioOf, refitted, round, withKey } from "./edit.js";
import { panel } from "./panel.js";
import { RequestView } from "./request.js";
import { Source } from "./source.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";
import { refusal } from "./upload.js";

const DRAFT = "reelbroker-draft";
const QUOTE_MS = 500;

/** What is edited is `request`, as it will be sent; all that is shown follows from it. */
export class NewExport {
  constructor(me, signal) {
    this.signal = signal;
    this.sources = [];
    this.shown = 0; // the source on the picture
    this.chosen = 0; // which of several highlights is being edited
    this.request = fresh("framing");
    this.stage = new Stage(() => this.items());
    this.timeline = new Timeline(
      this.stage.video,
      () => this.marks(),
      () => this.moved(),
    );
    this.view = new RequestView(me.user_id, (request) => this.rewritten(request));
    this.stage.video.addEventListener("loadedmetadata", () => this.learned());
    this.stage.video.addEventListener("error", () => this.sources.length && this.learned());
    signal.addEventListener("abort", () => this.close());
    this.build();
  }

  build() {
    this.picker = h("input", {
      type: "file",
      accept: "video/*,.mkv",
      multiple: true,
      hidden: true,
      id: "file",
      "aria-label": "Videos",
      onchange: () => this.take([...this.picker.files]),
    });
    this.refused = h("p", { class: "alert", role: "alert", hidden: true });
    this.files = h("ul", { class: "files", "aria-label": "Videos" });
    this.settings = h("div", { class: "settings" });
    this.settings.addEventListener("input", (event) => (this.typing = event.target));
    for (const over of ["change", "focusout"]) this.settings.addEventListener(over, () => this.typed(), true);
    this.quoted = h("p", { class: "quote", "aria-live": "polite" });
    this.button = h("button", { class: "main", id: "export", onclick: () => this.send() }, "Export");
    this.editor = h(
      "div",
      { class: "editor", hidden: true },
      h("section", { class: "picture", "aria-label": "Picture" }, this.stage.element, this.timeline.element, this.files),
      h(
        "section",
        { class: "card side", "aria-label": "Settings" },
        this.settings,
        h("div", { class: "send" }, this.quoted, this.view.wrong, this.button),
      ),
      this.view.element,
    );
    this.drop = h(
      "section",
      { class: "drop", "aria-label": "Choose a video" },
      h("div", { class: "frame", "aria-hidden": "true" }),
      h("h2", {}, "Drop a video here"),
      h("p", { class: "quiet" }, "MP4, MOV, MKV or WebM. It goes straight into your bucket."),
      h("button", { class: "main", id: "choose", onclick: () => this.picker.click() }, "Choose a file"),
    );
    this.element = h("div", { class: "new" }, h("h1", { tabindex: "-1" }, "New export"), this.refused, this.picker, this.drop, this.editor);
    for (const name of ["dragenter", "dragover"])
      this.element.addEventListener(name, (event) => (event.preventDefault(), this.drop.classList.add("over")));
    for (const name of ["dragleave", "drop"]) this.element.addEventListener(name, () => this.drop.classList.remove("over"));
    this.element.addEventListener("drop", (event) => (event.preventDefault(), this.take([...event.dataTransfer.files])));
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  // ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────

  /** Takes files: one is a source to edit, several are clips to join. */
  take(files) {
    this.picker.value = "";
    const reason = files.map(refusal).find((each) => each !== null) ?? null;
    this.refuse(reason);
    if (reason !== null || files.length === 0) return;
    const joins = this.request.type === "multi_clip";
    if (!joins) this.forget();
    for (const file of files) this.sources.push(Source.from(file, (source) => this.uploaded(source)));
    if (joins || this.sources.length > 1) this.join(joins ? this.request : fresh("multi_clip", this.request));
    else this.request = { ...fresh(this.request.type), input_key: this.sources[0].key };
    this.open(joins ? this.sources.length - files.length : 0);
  }

  refuse(reason) {
    this.refused.textContent = reason ?? "";
    this.refused.hidden = reason === null;
  }

  /** Opens an edit whose videos lie in the bucket. */
  async restore(request) {
    try {
      this.sources = await Promise.all(keysOf(request).map((key) => Source.at(key)));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      localStorage.removeItem(DRAFT);
      this.refuse(`The source of that edit cannot be had. ${error.message}`);
      return;
    }
    this.request = request;
    this.open(0);
  }

  open(index) {
    this.shown = index;
    this.drop.hidden = true;
    this.editor.hidden = false;
    this.stage.video.src = this.sources[index].url;
    this.changed();
  }

  learned() {
    this.source.learn(this.stage.video);
    this.element.classList.toggle("unplayable", !this.source.playable);
    for (const clip of this.request.type === "multi_clip" ? this.request.params.clips : []) {
      if (clip.input_key === this.source.key && this.source.playable) clip.end_time ??= round(this.source.duration, 3);
    }
    this.changed();
  }

  uploaded(source) {
    if (source.isThere) {
      const [standIn, key] = [source.key, source.upload.key].map((each) => JSON.stringify(each));
      source.key = source.upload.key;
      this.request = JSON.parse(JSON.stringify(this.request).replaceAll(standIn, key));
      this.changed();
      if (this.waiting) this.send();
    } else {
      this.waiting &&= !source.isLost;
      this.showFiles();
      this.showButton();
    }
  }

  forget() {
    for (const source of this.sources) source.close();
    this.sources = [];
    this.waiting = false;
    localStorage.removeItem(DRAFT);
  }

  remove(source) {
    source.close();
    this.sources = this.sources.filter((other) => other !== source);
    if (this.sources.length > 0) {
      this.request.params.clips = this.request.params.clips.filter((clip) => clip.input_key !== source.key);
      this.open(0);
      return;
    }
    this.forget();
    this.stage.video.removeAttribute("src");
    this.request = fresh("framing");
    this.drop.hidden = false;
    this.editor.hidden = true;
    document.getElementById("choose").focus();
  }

  // ── the edit ──────────────────────────────────────────────────────────────────────────────────────────────────

  get source() {
    return this.sources[this.shown];
  }

  get moment() {
    return this.timeline.moment;
  }

  choose(type) {
    const request = fresh(type, this.request);
    this.chosen = 0;
    if (type === "multi_clip") this.join(request);
    else this.request = { ...request, input_key: this.source.key };
    this.changed();
  }

  /** Gives every video that has no clip yet one of its whole length. */
  join(request) {
    for (const { key, duration } of this.sources) {
      if (request.params.clips.some((clip) => clip.input_key === key)) continue;
      request.params.clips.push({ input_key: key, start_time: 0, ...(duration && { end_time: round(duration, 3) }) });
    }
    this.request = request;
  }

  resize(width, height) {
    const { params } = this.request;
    Object.assign(params, { output_width: width, output_height: height });
    if (params.crop_keyframes && this.source.width) {
      params.crop_keyframes = refitted(params.crop_keyframes, ratioOf(params), this.source.width, this.source.height);
    }
    this.changed();
  }

  /** What can be moved on the picture at this moment. */
  items() {
    const { type, params } = this.request;
    if (!this.source?.width) return [];
    if (hasCrop(type)) {
      const geometry = cropAt(params, this.moment, this.source.width, this.source.height);
      return [{ id: "crop", shape: "box", label: `Crop. ${MOVE}`, geometry, change: (box) => this.setCrop(box) }];
    }
    if (type !== "overlay") return [];
    return [
      ...this.there(params.highlight_regions).map(([region, index]) => ({
        id: `region-${index}`,
        shape: "ellipse",
        label: `Highlight ${index + 1}. ${MOVE}`,
        geometry: ellipseAt(region, this.moment),
        change: (ellipse) => this.edit(() => (region.keyframes = withKey(region.keyframes, this.moment, ellipse))),
      })),
      ...this.there(params.text_layers).map(([layer, index]) => ({
        id: `text-${index}`,
        shape: "text",
        text: layer.text,
        label: `Text ${index + 1}. ${MOVE}`,
        geometry: { x: layer.x ?? 0, y: layer.y ?? 0, font_size: layer.font_size ?? 48 },
        change: (place) => this.edit(() => Object.assign(layer, place)),
      })),
    ];
  }

  /** Those of a list that are on the picture at this moment, with their numbers. */
  there(list = []) {
    const shown = ({ start_time: start = 0, end_time: end = Infinity }) => this.moment >= start - 0.001 && this.moment <= end + 0.001;
    return list.map((each, index) => [each, index]).filter(([each]) => shown(each));
  }

  setCrop(box) {
    const { params } = this.request;
    this.edit(() => (params.crop_keyframes = withKey(params.crop_keyframes ?? [], this.moment, box)));
  }

  /** Sets a key where the crop is anyway, so that it stays there while others move. */
  addKey() {
    const [crop] = this.items();
    if (crop?.id === "crop") crop.change(crop.geometry);
  }

  removeKey() {
    const { params } = this.request;
    const index = keyAt(params.crop_keyframes ?? [], this.moment);
    if (index >= 0) this.edit(() => params.crop_keyframes.splice(index, 1));
  }

  edit(change) {
    change();
    this.changed();
  }

  /** What lies on the time line. */
  marks() {
    const { type, params } = this.request;
    const bars = (list = [], kind) =>
      list.map((one, index) => ({
        from: one.start_time ?? 0,
        to: one.end_time ?? this.timeline.duration,
        label: one.name || one.text || `${kind} ${index + 1}`,
      }));
    const here = params.clips?.filter((clip) => (clip.input_key ?? this.source.key) === this.source.key);
    const keys = hasCrop(type) ? params.crop_keyframes : params.highlight_regions?.[this.chosen]?.keyframes;
    return {
      from: isOneClip(type) ? (params.start_time ?? 0) : 0,
      to: isOneClip(type) ? params.end_time : undefined,
      keys: (keys ?? [])
        .filter((key) => key.time !== undefined)
        .map((key) => ({ time: key.time, label: `Keyframe at ${clock(key.time)}` })),
      bars: [...bars(params.highlight_regions, "Highlight"), ...bars(params.text_layers, "Text"), ...bars(here, "Clip")],
    };
  }

  key(event) {
    const typing = event.target.matches("textarea, select, input:not([type=range], [type=radio], [type=checkbox])");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || this.sources.length === 0) return;
    if (event.key === "k") this.addKey();
    else if (event.key === "Delete" || event.key === "Backspace") this.removeKey();
    else if (event.key === " " && !event.target.matches("button, a, summary, [type=radio], [type=checkbox]")) this.timeline.toggle();
    else return;
    event.preventDefault();
  }

  // ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────

  /** After any change of the request: shows it everywhere, keeps it, and asks what it would take. */
  changed({ typed = false } = {}) {
    this.idempotency = uuid();
    this.stage.draw();
    this.timeline.draw();
    this.showSettings();
    this.showFiles();
    this.showButton();
    if (!typed) this.view.show(this.request);
    if (this.sources.every((source) => source.isThere)) localStorage.setItem(DRAFT, JSON.stringify(this.request));
    clearTimeout(this.quoting);
    this.quoting = setTimeout(() => this.quote(), QUOTE_MS);
  }

  /** Another moment is shown: what is on the picture has moved, and the crop's numbers with it. */
  moved() {
    this.stage.draw();
    if (this.stage.video.paused && this.sources.length) this.showSettings();
  }

  /**
   * In the next frame: not for each of many moves of a pointer, and not while the focus is on its way from one control to another. What
   * somebody is typing is left alone until it is typed.
   */
  showSettings() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.sources.length && !this.typing) fill(this.settings, panel(this));
    });
  }

  typed() {
    if (!this.typing) return;
    this.typing = null;
    this.showSettings();
  }

  rewritten(request) {
    this.broken = request === null;
    if (request === null) {
      clearTimeout(this.quoting);
      this.showButton();
    } else {
      this.request = request;
      this.changed({ typed: true });
    }
  }

  showFiles() {
    const several = this.sources.length > 1;
    fill(
      this.files,
      this.sources.map((source, index) =>
        source.row(index, several ? index === this.shown : null, { show: () => this.open(index), remove: () => this.remove(source) }),
      ),
    );
  }

  showButton() {
    const uploading = this.sources.some((source) => !source.isThere);
    this.button.disabled = Boolean(this.broken || this.sending || this.waiting || this.sources.some((source) => source.isLost));
    this.button.textContent = this.waiting
      ? "Exports once uploaded …"
      : this.sending
        ? "Sending …"
        : uploading
          ? "Export when uploaded"
          : "Export";
  }

  async quote() {
    if (this.sources.length === 0 || this.signal.aborted) return;
    const asked = { ...this.request };
    if (isOneClip(asked.type) && this.source.duration) asked.source_seconds = round(this.source.duration, 3);
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const quote = await this.sure(ask("POST", "/api/jobs/quote", { body: asked, signal: this.signal }), () => turn === this.turn);
    if (turn !== this.turn) return;
    fill(this.quoted, quote && said(quote));
    if (quote) this.view.complain([]);
  }

  /** What was asked for, or null where the broker refused it; then it is said, unless that matters no more. */
  async sure(asked, matters = () => true) {
    try {
      return await asked;
    } catch (error) {
      if (error.name === "AbortError") return null;
      if (!(error instanceof Problem)) throw error;
      if (matters()) this.view.complain(error.errors.length ? error.errors : [{ pointer: "", detail: error.message }]);
      return null;
    }
  }

  // ── off it goes ───────────────────────────────────────────────────────────────────────────────────────────────

  async send() {
    this.waiting = this.sources.some((source) => !source.isThere);
    this.sending = !this.waiting;
    this.showButton();
    if (this.waiting) return;
    const job = await this.sure(ask("POST", "/api/jobs", { body: this.request, headers: { "Idempotency-Key": this.idempotency } }));
    this.sending = false;
    this.showButton();
    if (job === null) return;
    localStorage.removeItem(DRAFT);
    tell("Sent");
    location.hash = `#/jobs/${job.job_id}`;
  }

  /** What has arrived of an upload stays, so that it goes on when the file is chosen again. */
  close() {
    clearTimeout(this.quoting);
    this.stage.video.removeAttribute("src");
    for (const source of this.sources) source.close(true);
  }
}

const MOVE = "Drag it, or use the arrow keys, plus and minus";

const keysOf = ({ input_key: key, params }) => [...new Set([key, ...(params.clips ?? []).map((clip) => clip.input_key)])].filter(Boolean);

function said(quote) {
  const cost = quote.cost_usd === null ? "" : ` · ${dollars(quote.cost_usd)} to ${dollars(quote.cost_usd_p90)}`;
  const basis = quote.basis === "history" ? "by your own jobs like it" : "a rough guess, until you have jobs of your own";
  const gpu = `${lasting(quote.gpu_seconds)} to ${lasting(quote.gpu_seconds_p90)} of GPU`;
  return [h("strong", {}, `${lasting(quote.output_seconds)} of video`), ` · ${gpu}${cost}`, h("small", {}, basis)];
}

/** Shows the screen: empty, with what was being edited, or with a job's edit to change it (`#/new?from=JOB`). */
export async function newExport(main, { me, query, signal }) {
  const screen = new NewExport(me, signal);
  fill(main, screen.element);
  const from = query.get("from");
  const draft = localStorage.getItem(DRAFT);
  if (from) {
    const { type, input_key, params } = await ask("GET", `/api/jobs/${from}`, { signal });
    await screen.restore({ type, ...(input_key && { input_key }), params });
  } else if (draft) {
    await screen.restore(JSON.parse(draft));
  }
}
