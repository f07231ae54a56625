// Which screen is shown: the part of the address behind the `#` says it. Here too: who is signed
// in.

import { ask, key, Problem, refusedWith, saying } from "./api.js";
import { confirmed } from "./dialog.js";
import { byId, fill, h } from "./dom.js";
import { jobPage } from "./job.js";
import { jobsPage } from "./jobs.js";
import { newExport } from "./new.js";
import { operationsPage } from "./operations.js";

/** @typedef {(main: HTMLElement, visit: Visit) => Promise<void>} Screen */

const main = byId("main");
/** @type {Me | null} */
let me = null;
let leaving = new AbortController();
/** Whether a screen was shown before: the first one leaves the focus alone. */
let moved = false;

/**
 * The screen of a path, its entry in the menu and its title.
 * @param {string[]} path
 * @param {Me} user
 * @returns {[Screen, string, string]}
 */
function screenOf([first, second], user) {
  if (first === "jobs") return second ? [jobPage, "jobs", "Job"] : [jobsPage, "jobs", "Jobs"];
  if (first === "operations" && user.admin) return [operationsPage, "operations", "Operations"];
  return [newExport, "new", "New export"];
}

async function go() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const fail = (/** @type {unknown} */ error) => {
    if (signal.aborted) return;
    if (refusedWith(error, 401)) signIn();
    else trouble(error);
  };
  await takeKey(signal);
  if (signal.aborted) return;
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  try {
    const user = (me ??= /** @type {Me} */ (await ask("GET", "/api/me")));
    const parts = path.split("/").filter(Boolean);
    const [screen, entry, title] = screenOf(parts, user);
    menu(entry, user);
    document.title = `${title} · Reelbroker`;
    await screen(main, { me: user, path: parts, query: new URLSearchParams(query), signal, fail });
    if (moved && !signal.aborted) main.querySelector("h1")?.focus();
    moved = true;
  } catch (error) {
    fail(error);
  }
}

/**
 * `#key=…`, as `reelbroker up` prints it: signs in, and leaves nothing of it in the address.
 * Anybody can make such a link, so the page asks before it replaces a stored key.
 */
async function takeKey(/** @type {AbortSignal} */ signal) {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return;
  history.replaceState(null, "", "#/new");
  if (!key.isOne(given) || given === key.get()) return;
  if (key.get()) {
    if (!(await isWanted(signal))) return;
    forgetUser();
  }
  me = null;
  key.set(given);
}

const isWanted = (/** @type {AbortSignal} */ signal) =>
  confirmed({
    title: "Use the key from this link?",
    text:
      "Another key is stored in this browser. With the key from the link, you work as its owner: " +
      "they see what you upload and export. Use it only if you trust whoever gave you the link.",
    yes: "Use the new key",
    no: "Keep my key",
    signal,
  });

function menu(/** @type {string} */ current, /** @type {Me} */ user) {
  const entries = [
    ["new", "New export"],
    ["jobs", "Jobs"],
    ...(user.admin ? [["operations", "Operations"]] : []),
  ];
  fill(
    byId("nav"),
    entries.map(([name, text]) =>
      h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, text),
    ),
    h("a", { href: "docs" }, "API"),
  );
  fill(
    byId("who"),
    h("span", { class: "quiet" }, user.user_id),
    key.get() !== "" && h("button", { id: "sign-out", onclick: signOut }, "Sign out"),
  );
}

function signOut() {
  forgetUser();
  go();
}

/** Forgets the key, and what else this browser has stored for its owner. */
function forgetUser() {
  me = null;
  for (const name of Object.keys(localStorage)) {
    if (name.startsWith("reelbroker-")) localStorage.removeItem(name);
  }
}

function signIn(refused = key.get() && "The broker does not know this key.") {
  me = null;
  fill(byId("nav"));
  fill(byId("who"));
  const given = h("input", {
    type: "password",
    id: "key",
    autocomplete: "current-password",
    required: true,
    "aria-describedby": "key-hint",
  });
  const enter = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    if (!key.isOne(given.value.trim())) {
      return signIn("This is no key: it has spaces or other characters that none has.");
    }
    key.set(given.value.trim());
    me = null;
    go();
  };
  fill(
    main,
    h(
      "form",
      { class: "card signin", onsubmit: enter },
      h("h1", { tabindex: "-1" }, "Sign in"),
      refused !== "" && h("p", { class: "alert", role: "alert" }, refused),
      h("label", { for: "key" }, "Your key"),
      given,
      h(
        "p",
        { class: "quiet", id: "key-hint" },
        "It begins with rb_. An operator makes one with “reelbroker keys create”; on your own " +
          "machine, “reelbroker up” prints it. It stays in this browser.",
      ),
      h("button", { class: "main" }, "Sign in"),
    ),
  );
  given.focus();
}

function trouble(/** @type {unknown} */ error) {
  if (!(error instanceof Problem)) console.error(error);
  const [title, told] = refusedWith(error, 404)
    ? ["Not here", "There is no such job, or it is another user's."]
    : ["That did not work", saying(error)];
  fill(
    main,
    h(
      "section",
      { class: "card trouble" },
      h("h1", { tabindex: "-1" }, title),
      h("p", { role: "alert" }, told),
      h("button", { onclick: go }, "Try again"),
      " ",
      h("a", { href: "#/jobs" }, "All jobs"),
    ),
  );
}

addEventListener("hashchange", go);
go();
