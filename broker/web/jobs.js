// All jobs, newest first: filtered, searched, and as they are now.

import { ask, ended } from "./api.js";
import { ago, dollars, fill, h, nameOf, select } from "./dom.js";
import { TYPES } from "./edit.js";
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

/** Shows the list, and asks again every two seconds while something moves and somebody looks. */
export async function jobsPage(main, { query, signal, fail }) {
  const asked = { status: query.get("status") ?? "", type: query.get("type") ?? "", search: query.get("search") ?? "" };
  let pages = 1;
  let timer;
  const rows = h("tbody", {});
  const more = h("button", { id: "more", hidden: true, onclick: () => ((pages += 1), load()) }, "Show more");
  const none = h("p", { class: "empty", hidden: true });
  const change = (name, value) => {
    asked[name] = value;
    pages = 1;
    const given = Object.entries(asked).filter(([, each]) => each);
    history.replaceState(null, "", `#/jobs${given.length ? `?${new URLSearchParams(given)}` : ""}`);
    for (const button of filters.children) button.setAttribute("aria-pressed", String(button.dataset.status === asked.status));
    load();
  };
  const filters = h(
    "div",
    { class: "tabs", role: "group", "aria-label": "Which jobs" },
    FILTERS.map(([status, text]) =>
      h(
        "button",
        { "data-status": status, "aria-pressed": String(status === asked.status), onclick: () => change("status", status) },
        text,
      ),
    ),
  );
  const kinds = select(asked.type, [["", "All types"], ...TYPES.map(([type, name]) => [type, name])], (value) => change("type", value), {
    id: "kind",
    "aria-label": "Type",
  });
  let typing;
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "File, id or metadata",
    value: asked.search,
    "aria-label": "Search",
    oninput: () => (clearTimeout(typing), (typing = setTimeout(() => change("search", search.value.trim()), 250))),
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
        ["Video", "Type", "Status", "Progress", "Made", "Cost"].map((name) => h("th", { scope: "col" }, name)),
      ),
    ),
    rows,
  );
  fill(main, h("h1", { tabindex: "-1" }, "Jobs"), h("div", { class: "filters" }, filters, kinds, search), table, none, more);

  const known = new Map();
  let turn = 0;
  async function load() {
    const mine = (turn += 1);
    clearTimeout(timer);
    let jobs = [];
    let cursor = null;
    try {
      for (let page = 0; page < pages; page += 1) {
        const given = Object.entries({ ...asked, cursor, limit: 50 }).filter(([, value]) => value);
        const found = await ask("GET", `/api/jobs?${new URLSearchParams(given)}`, { signal });
        jobs = jobs.concat(found.jobs);
        cursor = found.next_cursor;
        if (cursor === null) break;
      }
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      if (error.status === 401) return fail(error);
      none.hidden = false;
      none.textContent = error.message;
      timer = setTimeout(load, BUSY_MS);
      return;
    }
    if (mine !== turn || signal.aborted) return;
    show(jobs);
    table.hidden = jobs.length === 0;
    none.hidden = jobs.length > 0;
    none.textContent = Object.values(asked).some(Boolean) ? "No job is like that." : "No jobs yet. Make the first one: New export.";
    more.hidden = cursor === null;
    timer = setTimeout(again, jobs.some((job) => !ended(job.status)) ? BUSY_MS : QUIET_MS);
  }
  /** Rows stay, and change in place: somebody may be about to click. */
  function show(jobs) {
    for (const [id, row] of known) if (!jobs.some((job) => job.job_id === id)) (row.remove(), known.delete(id));
    jobs.forEach((job, index) => {
      if (!known.has(job.job_id)) known.set(job.job_id, h("tr", {}, head(job)));
      const row = known.get(job.job_id);
      row.replaceChildren(row.firstChild, ...cells(job));
      if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index] ?? null);
    });
  }
  const again = () => (document.hidden ? (timer = setTimeout(again, BUSY_MS)) : load());
  signal.addEventListener("abort", () => (clearTimeout(timer), clearTimeout(typing)));
  await load();
}

const head = (job) =>
  h(
    "th",
    { scope: "row" },
    h("a", { id: `job-${job.job_id}`, href: `#/jobs/${job.job_id}` }, nameOf(job.input_key)),
    h("small", {}, job.job_id.slice(0, 8)),
  );

function cells(job) {
  const cell = (...children) => h("td", {}, children);
  return [
    cell(TYPES.find(([type]) => type === job.type)[1]),
    cell(badge(job), job.error && h("small", {}, job.error)),
    cell(
      !ended(job.status) && [
        h("progress", { max: 100, value: job.progress, "aria-label": `Progress of ${nameOf(job.input_key)}` }),
        h("small", {}, `${job.progress} % · ${job.message}`),
      ],
    ),
    cell(ago(job.created_at)),
    cell(job.cost_usd !== null && dollars(job.cost_usd)),
  ];
}
