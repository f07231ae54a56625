// New export: a video in, its edit on the picture, the request that comes of it, and off it goes.

import { ask, Problem, refusedWith, saying, uuid } from "./api.js";
import { dollars, fill, h, lasting, tell } from "./dom.js";
import { fresh, isOneClip, ratioOf, refitted, round, timed } from "./edit.js";
import { panel } from "./panel.js";
import { addKey, byFrame, items, marks, removeKey, veil } from "./picture.js";
import { RequestView } from "./request.js";
import { Source } from "./source.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";
import { refusal } from "./upload.js";

const DRAFT = "reelbroker-draft";
const QUOTE_MS = 500;
const TYPED_IN = "textarea, select, input:not([type=range], [type=radio], [type=checkbox])";
const PRESSED_BY_SPACE = "button, a, summary, [type=radio], [type=checkbox]";

/** What is edited is `request`, as it will be sent; all that is shown follows from it. */
export class NewExport {
  constructor(/** @type {Me} */ me) {
    this.me = me;
    /** @type {Source[]} */
    this.sources = [];
    /** The source on the picture. */
    this.shown = 0;
    /** Which of several highlights is being edited. */
    this.chosen = 0;
    /** Whether a size of one's own is asked for. */
    this.custom = false;
    this.request = fresh("framing");
    /**
     * What was edited of other types, for those who only try them.
     * @type {Map<JobType, ExportRequest>}
     */
    this.former = new Map();
    this.idempotency = uuid();
    this.broken = false;
    this.waiting = false;
    this.sending = false;
    this.isOver = false;
    /** How many quotes were asked for: an older answer counts no more. */
    this.turn = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.quoting = undefined;
    /** @type {number | null} */
    this.frame = null;
    /** @type {EventTarget | null} */
    this.typing = null;
    this.stage = new Stage(
      () => items(this),
      () => veil(this.request),
    );
    this.timeline = new Timeline(
      this.stage.video,
      () => marks(this),
      () => this.moved(),
    );
    this.view = new RequestView(me.user_id, (request) => this.rewritten(request));
    const taken = () => this.take([...(this.picker.files ?? [])]);
    const props = {
      type: "file",
      accept: "video/*,.mkv",
      multiple: true,
      hidden: true,
      id: "file",
    };
    this.picker = h("input", { ...props, "aria-label": "Videos", onchange: taken });
    this.refused = h("p", { class: "alert", role: "alert", hidden: true });
    this.files = h("ul", { class: "files", "aria-label": "Videos" });
    this.settings = h("div", { class: "settings" });
    this.quoted = h("p", { class: "quote", "aria-live": "polite" });
    this.button = h(
      "button",
      { class: "main", id: "export", onclick: () => this.send() },
      "Export",
    );
    const send = h("div", { class: "send" }, this.quoted, this.view.wrong, this.button);
    this.editor = h(
      "div",
      { class: "editor", hidden: true },
      h(
        "section",
        { class: "picture", "aria-label": "Picture" },
        this.stage.element,
        this.timeline.element,
        this.files,
      ),
      h("section", { class: "card side", "aria-label": "Settings" }, this.settings, send),
      this.view.element,
    );
    this.chooser = h(
      "button",
      { class: "main", id: "choose", onclick: () => this.picker.click() },
      "Choose a file",
    );
    this.drop = h(
      "section",
      { class: "drop", "aria-label": "Choose a video" },
      h("div", { class: "frame", "aria-hidden": "true" }),
      h("h2", {}, "Drop a video here"),
      h("p", { class: "quiet" }, "MP4, MOV, MKV or WebM. It goes straight into your bucket."),
      this.chooser,
    );
    const title = h("h1", { tabindex: "-1" }, "New export");
    this.element = h(
      "div",
      { class: "new" },
      title,
      this.refused,
      this.picker,
      this.drop,
      this.editor,
    );
    this.listen();
  }

  listen() {
    this.stage.video.addEventListener("loadedmetadata", () => this.learned());
    this.stage.video.addEventListener("error", () => this.sources.length && this.learned());
    this.settings.addEventListener("input", (event) => (this.typing = event.target));
    for (const over of ["change", "focusout"]) {
      this.settings.addEventListener(over, () => this.typed(), true);
    }
    const over = (/** @type {boolean} */ is) => (/** @type {Event} */ event) => (
      event.preventDefault(),
      this.drop.classList.toggle("over", is)
    );
    for (const name of ["dragenter", "dragover"]) this.element.addEventListener(name, over(true));
    for (const name of ["dragleave", "drop"]) this.element.addEventListener(name, over(false));
    this.element.addEventListener("drop", (event) =>
      this.take([...(event.dataTransfer?.files ?? [])]),
    );
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  // ── sources ───────────────────────────────────────────────────────────────────────────────────

  /** Takes files: one is a source to edit, several are clips to join. */
  take(/** @type {File[]} */ files) {
    this.picker.value = "";
    const reason = files.map(refusal).find((each) => each !== null) ?? null;
    this.refuse(reason);
    if (reason !== null || files.length === 0) return;
    const joins = this.request.type === "multi_clip";
    if (!joins) this.forget();
    for (const file of files) {
      this.sources.push(Source.from(file, (source) => this.uploaded(source)));
    }
    if (joins || files.length > 1) {
      this.join(joins ? this.request : fresh("multi_clip", this.request));
    } else this.request = fresh(this.request.type);
    this.open(joins ? this.sources.length - files.length : 0);
  }

  refuse(/** @type {string | null} */ reason) {
    this.refused.textContent = reason ?? "";
    this.refused.hidden = reason === null;
  }

  /** Opens an edit whose videos lie in the bucket; raises Problem where they do not. */
  async restore(/** @type {ExportRequest} */ request) {
    this.sources = await Promise.all(keysOf(request).map((key) => Source.at(key)));
    if (this.sources.length === 0) return;
    this.request = request;
    this.open(0);
  }

  /** Puts a source on the picture; what is made of one source is made of that one. */
  open(/** @type {number} */ index) {
    this.shown = index;
    this.drop.hidden = true;
    this.editor.hidden = false;
    if (this.request.type !== "multi_clip") this.request.input_key = this.source.key;
    this.stage.video.src = this.source.url;
    this.showFiles();
    this.changed();
  }

  learned() {
    this.source.learn(this.stage.video);
    this.element.classList.toggle("unplayable", !this.source.playable);
    for (const clip of this.request.type === "multi_clip" ? clipsOf(this.request) : []) {
      if (clip.input_key === this.source.key && this.source.playable) {
        clip.end_time ??= round(this.source.duration, 3);
      }
    }
    this.showFiles();
    this.changed();
  }

  /** An upload has come further: its bar grows, or it has its key, or it is over. */
  uploaded(/** @type {Source} */ source) {
    const key = source.upload?.key;
    if (key && source.key !== key) {
      source.key = key;
      for (const request of [this.request, ...this.former.values()]) this.named(request);
      this.changed();
    } else if (!source.advanced()) {
      this.waiting &&= !source.isLost;
      this.showFiles();
      this.showButton();
      this.keep();
    }
    if (source.isThere && this.waiting) this.send();
  }

  /** Gives every source that a request names by its stand-in the key that it has by now. */
  named(/** @type {ExportRequest} */ request) {
    for (const { standIn, key } of this.sources) {
      for (const one of [request, ...clipsOf(request)]) {
        if (one.input_key && one.input_key === standIn) one.input_key = key;
      }
    }
  }

  forget() {
    for (const source of this.sources) source.close();
    this.sources = [];
    this.former.clear();
    this.waiting = false;
    localStorage.removeItem(DRAFT);
  }

  remove(/** @type {Source} */ source) {
    source.close();
    this.sources = this.sources.filter((other) => other !== source);
    if (this.sources.length === 0) return this.empty();
    for (const request of [this.request, ...this.former.values()]) {
      if (request.type !== "multi_clip") continue;
      request.params.clips = clipsOf(request).filter((clip) => clip.input_key !== source.key);
    }
    this.open(0);
    if (this.waiting) this.send();
  }

  empty() {
    this.forget();
    this.stage.video.removeAttribute("src");
    this.request = fresh("framing");
    this.drop.hidden = false;
    this.editor.hidden = true;
    this.chooser.focus();
  }

  // ── the edit ──────────────────────────────────────────────────────────────────────────────────

  get source() {
    return this.sources[this.shown];
  }

  get moment() {
    return this.timeline.moment;
  }

  /** Turns to another type, and to what was edited of it before. */
  choose(/** @type {JobType} */ type) {
    const { type: now } = this.request;
    this.former.set(now, this.request);
    const request = this.former.get(type) ?? fresh(type, this.request);
    this.chosen = 0;
    if (type === "multi_clip") this.join(request);
    else this.request = { ...request, input_key: this.source.key };
    this.changed();
  }

  /** Gives every video that has no clip yet one of its whole length. */
  join(/** @type {ExportRequest} */ request) {
    const clips = (request.params.clips ??= []);
    for (const { key, duration } of this.sources) {
      if (clips.some((clip) => clip.input_key === key)) continue;
      clips.push({
        input_key: key,
        start_time: 0,
        ...(duration > 0 && { end_time: round(duration, 3) }),
      });
    }
    this.request = request;
  }

  /**
   * @param {number | undefined} width
   * @param {number | undefined} height
   */
  resize(width, height) {
    const { params } = this.request;
    Object.assign(params, { output_width: width, output_height: height });
    if (params.crop_keyframes && this.source.width && !byFrame(params)) {
      params.crop_keyframes = refitted(
        params.crop_keyframes,
        ratioOf(params),
        this.source.width,
        this.source.height,
      );
    }
    this.changed();
  }

  edit(/** @type {() => void} */ change) {
    change();
    this.changed();
  }

  key(/** @type {KeyboardEvent} */ event) {
    const { target } = event;
    if (!(target instanceof Element) || target.matches(TYPED_IN)) return;
    if (event.ctrlKey || event.metaKey || event.altKey || this.sources.length === 0) return;
    if (event.key === "k") addKey(this);
    else if (event.key === "Delete" || event.key === "Backspace") removeKey(this);
    else if (event.key === " " && !target.matches(PRESSED_BY_SPACE)) this.timeline.toggle();
    else return;
    event.preventDefault();
  }

  // ── what is shown ─────────────────────────────────────────────────────────────────────────────

  /** After any change of the request: shows it everywhere, keeps it, and asks for its price. */
  changed() {
    this.idempotency = uuid();
    this.stage.draw();
    this.timeline.draw();
    this.showSettings();
    if (document.activeElement !== this.view.text) {
      this.broken = false;
      this.view.show(this.request);
    }
    this.showButton();
    this.keep();
    clearTimeout(this.quoting);
    this.quoting = setTimeout(() => this.quote(), QUOTE_MS);
  }

  /** Another moment is shown: what is on the picture has moved, and the crop's numbers with it. */
  moved() {
    this.stage.draw();
    if (this.stage.video.paused) this.showSettings();
  }

  /**
   * In the next frame: not for each of many moves of a pointer, and not while the focus is on its
   * way from one control to another. What somebody is typing is left alone until it is typed.
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

  /** The JSON was changed by hand; null: into something that is no request. */
  rewritten(/** @type {ExportRequest | null} */ request) {
    this.broken = request === null;
    clearTimeout(this.quoting);
    if (request === null) return this.showButton();
    this.named(request);
    this.request = request;
    this.changed();
  }

  showFiles() {
    const several = this.sources.length > 1;
    const row = (/** @type {Source} */ source, /** @type {number} */ index) =>
      source.row(index, several ? index === this.shown : null, {
        show: () => this.open(index),
        remove: () => this.remove(source),
      });
    fill(this.files, this.sources.map(row));
  }

  showButton() {
    this.button.disabled = Boolean(
      this.broken || this.sending || this.waiting || this.sources.some((source) => source.isLost),
    );
    this.button.textContent = this.waiting
      ? "Exports once uploaded …"
      : this.sending
        ? "Sending …"
        : this.isThere
          ? "Export"
          : "Export when uploaded";
  }

  async quote() {
    if (this.sources.length === 0 || this.broken) return;
    const asked = { ...this.request };
    if (isOneClip(asked.type) && this.source.duration) {
      asked.source_seconds = round(this.source.duration, 3);
    }
    const turn = (this.turn += 1);
    /** @type {Quote | null} */
    const quote = await this.sure(
      ask("POST", "/api/jobs/quote", { body: asked }),
      () => turn === this.turn,
    );
    if (turn !== this.turn) return;
    fill(this.quoted, quote && said(quote));
    if (quote) this.view.complain([]);
  }

  /**
   * What was asked for, or null where the broker refused it; then it is said, unless that matters
   * no more.
   * @template T
   * @param {Promise<T>} asked
   */
  async sure(asked, matters = () => true) {
    try {
      return await asked;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (matters()) {
        this.view.complain(
          error.errors.length ? error.errors : [{ pointer: "", detail: error.message }],
        );
      }
      return null;
    }
  }

  /** Keeps the edit for a page that is loaded anew, as soon as its videos are in the bucket. */
  keep() {
    if (this.sources.length && this.isThere) {
      localStorage.setItem(DRAFT, JSON.stringify(this.request));
    }
  }

  /** Whether it is the edit of a user, and not sent yet. */
  isOf(/** @type {Me} */ user) {
    return !this.isOver && this.me.user_id === user.user_id;
  }

  /** Whether every video is in the bucket. */
  get isThere() {
    return this.sources.every((source) => source.isThere);
  }

  get isUploading() {
    return this.sources.some((source) => !source.isThere && !source.isLost);
  }

  // ── off it goes ───────────────────────────────────────────────────────────────────────────────

  async send() {
    this.waiting = !this.isThere;
    this.sending = !this.waiting;
    this.showButton();
    if (this.waiting) return;
    const headers = { "Idempotency-Key": this.idempotency };
    /** @type {Job | null} */
    const job = await this.sure(ask("POST", "/api/jobs", { body: this.request, headers }));
    this.sending = false;
    this.showButton();
    if (job === null) return;
    const looked = this.element.isConnected;
    this.close();
    localStorage.removeItem(DRAFT);
    tell(looked ? "Sent" : `${this.source.name} is uploaded and sent`);
    if (looked) location.hash = `#/jobs/${job.job_id}`;
  }

  /**
   * Lets go of everything; what has arrived of an upload stays, so that it goes on when the file is
   * chosen again.
   */
  close() {
    clearTimeout(this.quoting);
    this.isOver = true;
    this.stage.video.removeAttribute("src");
    for (const source of this.sources) source.close(true);
  }
}

const clipsOf = (/** @type {ExportRequest} */ { params }) => params.clips ?? [];

/** The videos that a request names, each once. */
const keysOf = (/** @type {ExportRequest} */ request) => [
  ...new Set([request, ...clipsOf(request)].flatMap(({ input_key: key }) => (key ? [key] : []))),
];

function said(/** @type {Quote} */ quote) {
  const cost =
    quote.cost_usd === null
      ? ""
      : ` · ${dollars(quote.cost_usd)} to ${dollars(quote.cost_usd_p90)}`;
  const basis =
    quote.basis === "history"
      ? "by your own jobs like it"
      : "a rough guess, until you have jobs of your own";
  const gpu = `${lasting(quote.gpu_seconds)} to ${lasting(quote.gpu_seconds_p90)} of GPU`;
  return [
    h("strong", {}, `${lasting(quote.output_seconds)} of video`),
    ` · ${gpu}${cost}`,
    h("small", {}, basis),
  ];
}

/**
 * The editor stays, with its uploads, while other screens are shown.
 * @type {NewExport | null}
 */
let screen = null;

addEventListener("beforeunload", (event) => {
  if (screen?.isUploading && !screen.isOver) event.preventDefault();
});

/**
 * Shows the editor: as it was left, with the edit of a page that was closed, or with a job's
 * (`#/new?from=JOB`).
 * @param {HTMLElement} main
 * @param {Visit} visit
 */
export async function newExport(main, { me, query, signal }) {
  const from = query.get("from");
  const goesOn = !from && screen?.isOf(me);
  const editor = goesOn && screen ? screen : begin(me);
  fill(main, editor.element);
  signal.addEventListener("abort", () => editor.stage.video.pause());
  if (goesOn) return;
  try {
    await editor.restore(from ? await requestFrom(from, signal) : draft());
    // Loaded anew, it is the edit that comes back, and not the job.
    if (from) history.replaceState(null, "", "#/new");
  } catch (error) {
    if (signal.aborted || refusedWith(error, 401)) throw error;
    if (!from) forgetDraftAfter(error);
    editor.refuse(`The edit cannot be opened. ${saying(error)}`);
  }
}

/** Begins an editor in place of the one that was left. */
function begin(/** @type {Me} */ me) {
  screen?.close();
  screen = new NewExport(me);
  return screen;
}

/** Where a video of it is not there any more, it would never open. */
function forgetDraftAfter(/** @type {unknown} */ error) {
  if (refusedWith(error, 404)) localStorage.removeItem(DRAFT);
}

/** @returns {ExportRequest} */
const draft = () => JSON.parse(localStorage.getItem(DRAFT) ?? '{"params": {}}');

const requestFrom = async (/** @type {string} */ jobId, /** @type {AbortSignal} */ signal) =>
  requestOf(await ask("GET", `/api/jobs/${encodeURIComponent(jobId)}`, { signal }));

/**
 * What was asked for with a job; frame numbers become moments where its result says how long a
 * frame is.
 * @param {Job} job
 * @returns {ExportRequest}
 */
function requestOf({ type, input_key, params, project_id, game_id, metadata, result }) {
  const given = Object.entries({ input_key, project_id, game_id }).filter(
    ([, value]) => value !== null,
  );
  const about = Object.keys(metadata).length ? { metadata } : {};
  return { type, ...Object.fromEntries(given), ...about, params: timed(params, result) };
}
