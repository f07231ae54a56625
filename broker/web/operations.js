// For operators: is the fleet well, what does it cost, and what needs a look.

import { ask, Problem, refusedWith, saying } from "./api.js";
import { bars, ranks } from "./chart.js";
import { ago, dollars, fill, h, lasting, tell, time } from "./dom.js";

const EVERY_MS = 5000;
const ENDS = [
  { name: "complete", className: "complete" },
  { name: "failed", className: "error" },
  { name: "cancelled", className: "cancelled" },
];
/** @type {[WorkerState, string, string][]} */
const WORKERS = [
  ["running", "At work", "processing"],
  ["idle", "Idle", "complete"],
  ["starting", "Starting", "pending"],
  ["throttled", "Waiting for a GPU", "cancelled"],
  ["unhealthy", "Unhealthy", "error"],
];

/**
 * @param {HTMLElement} main
 * @param {Visit} visit
 */
export async function operationsPage(main, { me, signal, fail }) {
  const board = h("div", { class: "board" });
  const fresh = h("p", { class: "quiet" });
  const switched = h("button", { id: "drain", onclick: () => drain() });
  let draining = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  fill(
    main,
    h("div", { class: "row" }, h("h1", { class: "grow", tabindex: "-1" }, "Operations"), switched),
    fresh,
    board,
  );
  signal.addEventListener("abort", () => clearTimeout(timer));

  async function drain() {
    if (!draining && !confirm("Take and send no new jobs? Those that run go on.")) return;
    try {
      await ask("POST", "/api/operations/drain", { body: { on: !draining } });
      tell(draining ? "Jobs are taken again" : "No new jobs are taken or sent");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      tell(error.message);
    }
    await load();
  }

  async function load() {
    clearTimeout(timer);
    try {
      /** @type {Fleet} */
      const fleet = await ask("GET", "/api/operations", { signal });
      draining = fleet.draining;
      switched.textContent = draining ? "Take jobs again" : "Drain";
      fresh.textContent = `All users, as of ${time(fleet.at)}.`;
      const open = [...board.querySelectorAll("details")].map((details) => details.open);
      fill(board, shown(fleet, me));
      board
        .querySelectorAll("details")
        .forEach((details, index) => (details.open = open[index] ?? false));
    } catch (error) {
      if (signal.aborted) return;
      if (refusedWith(error, 401, 403)) return fail(error);
      fresh.textContent = saying(error);
    }
    timer = setTimeout(again, EVERY_MS);
  }
  const again = () => (document.hidden ? (timer = setTimeout(again, EVERY_MS)) : load());
  await load();
}

/** @returns {Child[]} */
function shown(/** @type {Fleet} */ fleet, /** @type {Me} */ me) {
  const { places, today, hours } = fleet;
  const open = Object.values(fleet.open_jobs).reduce((sum, count) => sum + count, 0);
  const waiting = ["accepted", "submitting", "queued"].reduce(
    (sum, phase) => sum + (fleet.open_jobs[phase] ?? 0),
    0,
  );
  const known = places.map((place) => place.workers).filter((workers) => workers !== null);
  const workersIn = (/** @type {Workers[]} */ all, /** @type {keyof Workers} */ state) =>
    all.reduce((sum, workers) => sum + (workers[state] ?? 0), 0);
  const queued = places.reduce((sum, place) => sum + (place.queued ?? 0), 0);
  const failed = Object.values(fleet.error_codes).reduce((sum, count) => sum + count, 0);
  const hour = (/** @type {Hour} */ each) =>
    new Date(each.at).toLocaleTimeString([], {
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
    });
  return [
    fleet.draining &&
      h("p", { class: "note wide" }, "The broker is being drained: no new jobs are taken or sent."),
    ...places
      .filter((place) => place.error !== null)
      .map((place) =>
        h("p", { class: "alert wide" }, `${place.provider} does not answer: ${place.error}`),
      ),
    h(
      "dl",
      { class: "tiles wide" },
      tile("Open jobs", open, `${open - waiting} at work`),
      tile(
        "Waiting",
        waiting,
        fleet.oldest_wait_seconds === null
          ? "nobody waits"
          : `the longest for ${lasting(fleet.oldest_wait_seconds)}`,
      ),
      tile(
        "Workers up",
        known.length ? workersIn(known, "running") + workersIn(known, "idle") : "?",
        known.length ? `${queued} queued at the provider` : "not known",
      ),
      tile("GPU today", lasting(today.gpu_seconds), `${today.complete} complete, since 00:00 UTC`),
      tile(
        "Cost today",
        dollars(today.cost_usd),
        today.cost_usd === null ? "no price is set" : "as billed by the second",
      ),
      tile("Failed", failed, "in 24 hours", failed ? "bad" : ""),
    ),
    bars(
      "Jobs that ended, by the hour",
      hours.map((each) => ({
        label: hour(each),
        values: [each.complete, each.error, each.cancelled],
        told:
          `${hour(each)}: ${each.complete} complete, ` +
          `${each.error} failed, ${each.cancelled} cancelled`,
      })),
      ENDS,
    ),
    bars(
      "GPU seconds, by the hour",
      hours.map((each) => ({
        label: hour(each),
        values: [each.gpu_seconds],
        told: `${hour(each)}: ${each.gpu_seconds} s, ${dollars(each.cost_usd)}`,
      })),
      [{ name: "GPU seconds", className: "processing" }],
      " s",
    ),
    ...places.flatMap((place) => byState(place, places.length > 1)),
    Object.keys(fleet.today_by_provider).length > 1 &&
      list(
        "Today, by provider",
        Object.entries(fleet.today_by_provider),
        ["Provider", "Complete", "Failed", "GPU", "Cost"],
        "No job has ended.",
        ([name, tally]) => [
          name,
          String(tally.complete),
          String(tally.error),
          lasting(tally.gpu_seconds),
          dollars(tally.cost_usd),
        ],
      ),
    ranks(
      "Why jobs failed, in 24 hours",
      Object.entries(fleet.error_codes).map(([name, value]) => ({
        name,
        value,
        className: "error",
      })),
      "Nothing failed.",
    ),
    list(
      "Stalled jobs",
      fleet.stalled,
      ["Job", "User", "Phase", "Since"],
      "No job is stuck.",
      (job) => [
        job.user_id === me.user_id
          ? h("a", { href: `#/jobs/${job.job_id}` }, job.job_id.slice(0, 8))
          : h("code", {}, job.job_id),
        job.user_id,
        `${job.phase}, ${job.progress} %`,
        ago(job.since),
      ],
    ),
    list(
      "Orphans",
      fleet.orphans,
      ["Job", "At the provider", "Why", "Cost at most"],
      "No run is left over.",
      (orphan) => [
        h("code", {}, `${orphan.job_id.slice(0, 8)} / ${orphan.attempt}`),
        h("code", {}, orphan.runpod_job_id ?? orphan.modal_call_id ?? "not known"),
        orphan.why,
        `${lasting(orphan.seconds_at_most)}, ${dollars(orphan.usd_at_most)}`,
      ],
    ),
  ];
}

/** A place's workers; a state that its provider does not count is left out. */
function byState(/** @type {Place} */ place, /** @type {boolean} */ named) {
  const { workers } = place;
  if (!workers) return [];
  const rows = WORKERS.flatMap(([state, name, className]) => {
    const value = workers[state];
    return value === null ? [] : [{ name, value, className }];
  });
  return [ranks(named ? `Workers by state, ${place.provider}` : "Workers by state", rows)];
}

/** @type {(name: string, value: number | string, told: string, kind?: string) => HTMLElement} */
const tile = (name, value, told, kind = "") =>
  h(
    "div",
    { class: `card tile ${kind}` },
    h("dt", {}, name),
    h("dd", {}, h("strong", {}, String(value)), h("small", {}, told)),
  );

/**
 * @template T
 * @param {string} title
 * @param {T[]} items
 * @param {string[]} head
 * @param {string} nothing what to say where there are none
 * @param {(item: T) => Child[]} cells
 */
function list(title, items, head, nothing, cells) {
  const table = () =>
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            head.map((name) => h("th", { scope: "col" }, name)),
          ),
        ),
        h(
          "tbody",
          {},
          items.map((item) =>
            h(
              "tr",
              {},
              cells(item).map((cell) => h("td", {}, cell)),
            ),
          ),
        ),
      ),
    );
  return h(
    "section",
    { class: "card", "aria-label": title },
    h("h2", {}, title),
    items.length ? table() : h("p", { class: "quiet" }, nothing),
  );
}
