// All jobs, newest first: filtered, searched, and as they are now.

import { ask, ended, refusedWith, saying } from "./api.js";
import { ago, dollars, fill, h, nameOf, select } from "./dom.js";
import { typeNamed, TYPES } from "./edit.js";
import { badge } from "./job.js";

const BUSY_MS = 2000;
const QUIET_MS = 5000;
const FILTERS = [
  ["", "All"],
  ["pending,processing", "Open"],
  ["complete", "Complete"],
  ["error", "Failed"],
  ["cancelled", "Cancelled"],
];

/**
 * Shows the list, and asks again every two seconds while something moves and somebody looks.
 * @param {HTMLElement} main
 * @param {Visit} visit
 */
export async function jobsPage(main, { query, signal, fail }) {
  /** @type {{status: string, type: string, search: string}} */
  const asked = {
    status: query.get("status") ?? "",
    type: query.get("type") ?? "",
    search: query.get("search") ?? "",
  };
  let pages = 1;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const rows = h("tbody", {});
  const more = h(
    "button",
    { id: "more", hidden: true, onclick: () => ((pages += 1), load()) },
    "Show more",
  );
  const none = h("p", { class: "empty", hidden: true });
  const change = (/** @type {keyof typeof asked} */ name, /** @type {string} */ value) => {
    asked[name] = value;
    pages = 1;
    const given = Object.entries(asked).filter(([, each]) => each);
    history.replaceState(null, "", `#/jobs${given.length ? `?${new URLSearchParams(given)}` : ""}`);
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.status === asked.status));
    }
    load();
  };
  const buttons = FILTERS.map(([status, text]) =>
    h(
      "button",
      {
        "data-status": status,
        "aria-pressed": String(status === asked.status),
        onclick: () => change("status", status),
      },
      text,
    ),
  );
  const filters = h("div", { class: "tabs", role: "group", "aria-label": "Which jobs" }, buttons);
  const kinds = select(
    asked.type,
    [["", "All types"], ...TYPES.map(([type, name]) => [type, name])],
    (value) => change("type", value),
    {
      id: "kind",
      "aria-label": "Type",
    },
  );
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let typing;
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "File, id or metadata",
    value: asked.search,
    "aria-label": "Search",
    oninput: () => (
      clearTimeout(typing),
      (typing = setTimeout(() => change("search", search.value.trim()), 250))
    ),
  });
  const table = h(
    "table",
    { class: "jobs" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["Video", "Type", "Status", "Progress", "Made", "Cost"].map((name) =>
          h("th", { scope: "col" }, name),
        ),
      ),
    ),
    rows,
  );
  fill(
    main,
    h("h1", { tabindex: "-1" }, "Jobs"),
    h("div", { class: "filters" }, filters, kinds, search),
    table,
    none,
    more,
  );

  /** @type {Map<string, HTMLTableRowElement>} */
  const known = new Map();
  let turn = 0;
  async function load() {
    const mine = (turn += 1);
    clearTimeout(timer);
    /** @type {Job[]} */
    let jobs = [];
    /** @type {string | null} */
    let cursor = null;
    try {
      for (let page = 0; page < pages; page += 1) {
        /** @type {{jobs: Job[], next_cursor: string | null}} */
        const found = await ask("GET", `/api/jobs?${pageOf(asked, cursor)}`, { signal });
        jobs = jobs.concat(found.jobs);
        cursor = found.next_cursor;
        if (cursor === null) break;
      }
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      if (refusedWith(error, 401)) return fail(error);
      none.hidden = false;
      none.textContent = saying(error);
      timer = setTimeout(load, BUSY_MS);
      return;
    }
    if (mine !== turn || signal.aborted) return;
    show(jobs);
    table.hidden = jobs.length === 0;
    none.hidden = jobs.length > 0;
    none.textContent = Object.values(asked).some(Boolean)
      ? "No job is like that."
      : "No jobs yet. Make the first one: New export.";
    more.hidden = cursor === null;
    timer = setTimeout(again, jobs.some((job) => !ended(job.status)) ? BUSY_MS : QUIET_MS);
  }
  /** Rows stay, and change in place: somebody may be about to click. */
  function show(/** @type {Job[]} */ jobs) {
    for (const [id, row] of known) {
      if (!jobs.some((job) => job.job_id === id)) (row.remove(), known.delete(id));
    }
    jobs.forEach((job, index) => {
      const row = known.get(job.job_id) ?? h("tr", {}, head(job));
      known.set(job.job_id, row);
      row.replaceChildren(row.firstChild ?? head(job), ...cells(job));
      if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index] ?? null);
    });
  }
  const again = () => (document.hidden ? (timer = setTimeout(again, BUSY_MS)) : load());
  signal.addEventListener("abort", () => (clearTimeout(timer), clearTimeout(typing)));
  await load();
}

/** The query of one page of the list: what is asked for, without what is left empty. */
const pageOf = (/** @type {Record<string, string>} */ asked, /** @type {string | null} */ cursor) =>
  new URLSearchParams(
    Object.entries({ ...asked, cursor: cursor ?? "", limit: "50" }).filter(([, value]) => value),
  );

const head = (/** @type {Job} */ job) =>
  h(
    "th",
    { scope: "row" },
    h("a", { id: `job-${job.job_id}`, href: `#/jobs/${job.job_id}` }, nameOf(job.input_key)),
    h("small", {}, job.job_id.slice(0, 8)),
  );

function cells(/** @type {Job} */ job) {
  const cell = (/** @type {Child[]} */ ...children) => h("td", {}, children);
  return [
    cell(typeNamed(job.type).name),
    cell(badge(job), job.error && h("small", {}, job.error)),
    cell(
      !ended(job.status) && [
        h("progress", {
          max: 100,
          value: job.progress,
          "aria-label": `Progress of ${nameOf(job.input_key)}`,
        }),
        h("small", {}, `${job.progress} % · ${job.message}`),
      ],
    ),
    cell(ago(job.created_at)),
    cell(job.cost_usd !== null && dollars(job.cost_usd)),
  ];
}
