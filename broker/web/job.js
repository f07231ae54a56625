// One job: how far it is, what happened to it, and what came out.

import { ask, ended, follow, objectUrl, Problem, refusedWith, send } from "./api.js";
import { Compare } from "./compare.js";
import { ago, bytes, dollars, fill, h, lasting, nameOf, tell, time } from "./dom.js";
import { pieces, timed, typeNamed } from "./edit.js";
import { byFrame } from "./picture.js";

/** @type {[string, string[]][]} */
const STEPS = [
  ["Accepted", ["accepted", "submitting"]],
  ["Waiting for a GPU", ["queued"]],
  ["Working", ["starting", "downloading", "processing"]],
  ["Uploading", ["uploading", "verifying"]],
  ["Done", ["done"]],
];
/** @type {Record<Line, string>} */
const LINES = {
  live: "Live",
  polling: "Polling: the live line does not come through",
  away: "The broker cannot be reached; trying again …",
  gone: "The job is not there any more",
};
/** @type {Record<string, string>} */
const KINDS = {
  accepted: "Accepted",
  attempt_begun: "An attempt begins",
  submitted: "Sent to the GPU provider",
  cancel_requested: "Cancelling",
  superseded: "Given up; another attempt follows",
};

export class JobScreen {
  /**
   * @param {Job} job
   * @param {number} version of the job: the number of the last event that is in it
   * @param {AbortSignal} signal
   */
  constructor(job, version, signal) {
    this.job = job;
    this.version = version;
    this.signal = signal;
    /** @type {JobEvent[]} */
    this.events = [];
    /** @type {number | null} */
    this.frame = null;
    /** @type {Line | null} */
    this.line = null;
    this.drawn = "";
    this.compared = false;
    this.head = h("header", { class: "jobhead" });
    this.online = h("span", { class: "line", role: "status" });
    this.state = h("section", { class: "card state", "aria-label": "Progress" });
    this.result = h("section", { class: "card result", "aria-label": "Result", hidden: true });
    this.facts = h("section", { class: "card facts", "aria-label": "Facts" });
    this.history = h("ol", { class: "history" });
    this.element = h(
      "div",
      { class: "job" },
      this.head,
      this.state,
      this.result,
      h(
        "div",
        { class: "halves" },
        h(
          "section",
          { class: "card", "aria-label": "What happened" },
          h("h2", {}, "What happened"),
          this.history,
        ),
        this.facts,
      ),
    );
    this.draw();
  }

  /** An event: the history grows by it; the job changes by what it does not know yet. */
  take(/** @type {JobEvent} */ event) {
    this.events.push(event);
    const news = event.seq > this.version;
    if (news) {
      Object.assign(this.job, event.changes);
      this.version = event.seq;
    }
    if (ended(event.changes.status)) this.settle(news);
    else this.drawSoon();
  }

  /** At the end: everything as the broker says it now. */
  async settle(/** @type {boolean} */ news) {
    try {
      this.job = await ask("GET", `/api/jobs/${this.job.job_id}`, { signal: this.signal });
    } catch {
      if (this.signal.aborted) return;
    }
    if (news) tell(`${nameOf(this.job.input_key)}: ${WORDS[this.job.status].toLowerCase()}`);
    this.draw();
  }

  drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  /** How the line to the broker is; said only when that changes. */
  isOnline(/** @type {Line} */ line) {
    if (this.line === line) return;
    this.line = line;
    this.online.className = `line ${line}`;
    this.online.textContent = LINES[line];
  }

  // ── what is shown ─────────────────────────────────────────────────────────────────────────────

  draw() {
    const { job } = this;
    const state = ended(job.status) ? WORDS[job.status] : `${job.progress} %`;
    document.title = `${state} · ${nameOf(job.input_key)} · Reelbroker`;
    this.drawHead();
    this.drawState();
    this.drawFacts();
    fill(
      this.history,
      told(this.events).map(({ at, text, kind }) =>
        h(
          "li",
          { class: kind },
          h("time", { datetime: at, title: at }, time(at)),
          h("span", {}, text),
        ),
      ),
    );
    if (job.status === "complete" && !this.compared) this.showResult();
  }

  /** Not at each event: somebody may be about to press a button. */
  drawHead() {
    const { job } = this;
    const drawn = `${job.status} ${job.cancel_requested_at}`;
    if (this.drawn === drawn) return;
    this.drawn = drawn;
    fill(
      this.head,
      h(
        "p",
        { class: "quiet" },
        h("a", { href: "#/jobs" }, "Jobs"),
        " / ",
        typeNamed(job.type).name,
      ),
      h(
        "div",
        { class: "row" },
        h("h1", { id: "title", class: "grow", tabindex: "-1" }, nameOf(job.input_key)),
        this.actions(),
      ),
    );
  }

  actions() {
    const { job } = this;
    const again = h(
      "a",
      { class: "button", id: "again", href: `#/new?from=${job.job_id}` },
      "Edit again",
    );
    if (!ended(job.status)) {
      const asked = job.cancel_requested_at !== null;
      return h(
        "button",
        { id: "cancel", class: "danger", disabled: asked, onclick: () => this.cancel() },
        asked ? "Cancelling …" : "Cancel",
      );
    }
    if (job.status === "complete") {
      return [
        again,
        h("button", { id: "download", class: "main", onclick: () => this.download() }, "Download"),
      ];
    }
    return [
      again,
      h("button", { id: "retry", class: "main", onclick: () => this.retry() }, "Retry"),
    ];
  }

  drawState() {
    const { job } = this;
    const over = ended(job.status);
    const at = STEPS.findIndex(([, phases]) => phases.includes(job.phase));
    const failed = job.status === "error" || job.status === "cancelled";
    fill(
      this.state,
      h(
        "div",
        { class: "row" },
        badge(job),
        h(
          "span",
          { class: "grow message" },
          job.result && job.status === "complete" ? summary(job.result) : job.message,
        ),
        !over && this.online,
      ),
      !failed &&
        h("progress", { class: "wide", max: 100, value: job.progress, "aria-label": "Progress" }),
      !failed &&
        h(
          "ol",
          { class: "steps" },
          STEPS.map(([name], index) =>
            h(
              "li",
              {
                class: index < at || over ? "past" : index === at ? "now" : "",
                "aria-current": index === at && !over ? "step" : null,
              },
              name,
            ),
          ),
        ),
      job.stalled &&
        h(
          "p",
          { class: "note" },
          "The worker has told nothing new for a while. It may be stuck; the job goes on, or is " +
            "tried again.",
        ),
      job.status === "error" &&
        h(
          "p",
          { class: "alert", role: "alert" },
          h("strong", {}, job.error),
          h(
            "small",
            {},
            `${job.error_code}: `,
            job.retryable
              ? "the same may succeed when it is sent again"
              : "sent again as it is, it would fail again",
          ),
        ),
    );
  }

  drawFacts() {
    const { job } = this;
    const { result } = job;
    /** @type {([string, Child] | false | null | "")[]} */
    const rows = [
      ["Job", h("code", {}, job.job_id)],
      ["Made", ago(job.created_at)],
      job.started_at && [
        "Waited",
        lasting(Math.max(0, (Date.parse(job.started_at) - Date.parse(job.created_at)) / 1000)),
      ],
      job.started_at &&
        job.completed_at && [
          "Took",
          lasting((Date.parse(job.completed_at) - Date.parse(job.started_at)) / 1000),
        ],
      ["Attempt", `${job.attempt} of ${job.max_attempts}`],
      job.gpu_seconds !== null && [
        "GPU",
        `${lasting(job.gpu_seconds)}${job.cost_usd === null ? "" : ` · ${dollars(job.cost_usd)}`}`,
      ],
      result && ["Result", `${result.frames} frames, ${Number(result.fps.toFixed(2))} a second`],
      ...notes(result),
      result && ["Codecs", [result.video_codec, result.audio_codec].filter(Boolean).join(" + ")],
      job.last_evidence && [
        "Last seen",
        [`${job.last_evidence.source}, `, ago(job.last_evidence.at)],
      ],
      job.retry_of && [
        "Retry of",
        h("a", { href: `#/jobs/${job.retry_of}` }, job.retry_of.slice(0, 8)),
      ],
      ...atProvider(job),
    ];
    const open = this.facts.querySelector("details")?.open;
    fill(
      this.facts,
      h("h2", {}, "Facts"),
      h(
        "dl",
        {},
        rows.map((row) => row && [h("dt", {}, row[0]), h("dd", {}, row[1])]),
      ),
      h(
        "details",
        { open },
        h("summary", {}, "Params"),
        h("pre", { tabindex: "0" }, JSON.stringify(job.params, null, 2)),
      ),
    );
  }

  async showResult() {
    this.compared = true;
    const { job } = this;
    const { result, input_key: key } = job;
    if (result === null) return;
    const params = timed(job.params, result);
    const comparable =
      pieces(job.type, params, Infinity) !== null && !params.rotation && !byFrame(params);
    // The source may have been removed since.
    const gone = () => null;
    const [after, before] = await Promise.all([
      objectUrl(job.output_key),
      comparable && key ? objectUrl(key).catch(gone) : null,
    ]).catch((error) => {
      this.refused(error);
      return [null, null];
    });
    if (after === null || this.signal.aborted) return;
    const compare = new Compare({ ...job, result }, params, { before, after });
    this.signal.addEventListener("abort", () => compare.close());
    this.result.hidden = false;
    fill(this.result, compare.element);
  }

  // ── what can be done ──────────────────────────────────────────────────────────────────────────

  async cancel() {
    await this.act(async () => {
      Object.assign(this.job, await ask("POST", `/api/jobs/${this.job.job_id}/cancel`));
      tell("Cancelling: the GPU is told to stop");
    });
  }

  async retry() {
    await this.act(async () => {
      const job = await ask("POST", `/api/jobs/${this.job.job_id}/retry`);
      tell("Sent again");
      location.hash = `#/jobs/${job.job_id}`;
    });
  }

  /**
   * The link is good for an hour, so it is asked for when it is wanted; it is the bucket's, which
   * names the file.
   */
  async download() {
    await this.act(async () => {
      h("a", { href: await objectUrl(this.job.output_key), download: "" }).click();
      tell("The download begins");
    });
  }

  async act(/** @type {() => Promise<void>} */ what) {
    try {
      await what();
    } catch (error) {
      this.refused(error);
    }
    this.draw();
  }

  refused(/** @type {unknown} */ error) {
    if (!(error instanceof Problem)) throw error;
    tell(error.message);
  }
}

/** @type {Record<Status, string>} */
export const WORDS = {
  pending: "Waiting",
  processing: "Working",
  complete: "Complete",
  error: "Failed",
  cancelled: "Cancelled",
};

/** @returns {[string, string][]} */
const notes = (/** @type {Result | null} */ result) =>
  (result?.warnings ?? []).map((text) => ["Note", text]);
/** @returns {[string, HTMLElement][]} */
const atProvider = (/** @type {Job} */ job) =>
  [
    ["At RunPod", job.runpod_job_id],
    ["At Modal", job.modal_call_id],
  ].flatMap(([name, id]) => (name && id ? [[name, h("code", {}, id)]] : []));
const summary = (/** @type {Result} */ result) =>
  [
    `${result.width} × ${result.height}`,
    lasting(result.duration_seconds),
    bytes(result.bytes),
  ].join(" · ");

export const badge = (/** @type {Job} */ job) =>
  h(
    "span",
    { class: `badge ${job.status}` },
    job.cancel_requested_at && !ended(job.status) ? "Cancelling" : WORDS[job.status],
  );

/** The events as people tell them: what was said again, and the percents between, are one line. */
function told(/** @type {JobEvent[]} */ events) {
  /** @type {{at: string, said: string, text: string, kind: string}[]} */
  const lines = [];
  for (const { at, kind, changes } of events) {
    const said = changes.message ?? KINDS[kind];
    const last = lines.at(-1);
    const { progress = 0 } = changes;
    const percent = progress > 0 && progress < 100 ? `, ${progress} %` : "";
    if (said !== undefined && said !== last?.said) {
      lines.push({ at, said, text: said + percent, kind: changes.status ?? "" });
    } else if (last && percent) last.text = last.said + percent;
  }
  return lines;
}

/**
 * Shows a job, and follows it until its end.
 * @param {HTMLElement} main
 * @param {Visit} visit
 */
export async function jobPage(main, { path, signal, fail }) {
  const [, id] = path;
  const reply = await send("GET", `/api/jobs/${id}`, { signal });
  const version = Number(reply.headers.get("ETag")?.replace(/\D/g, "") ?? 0);
  const screen = new JobScreen(await reply.json(), version, signal);
  fill(main, screen.element);
  follow(id, {
    signal,
    onevent: (event) => screen.take(event),
    onjob: (job) => (Object.assign(screen.job, job), screen.draw()),
    online: (line) => screen.isOnline(line),
  }).catch((error) => (refusedWith(error, 404) ? screen.isOnline("gone") : fail(error)));
}
