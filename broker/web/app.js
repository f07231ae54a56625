// Which screen is shown: the part of the address behind the `#` says it. Here too: who is signed in.

import { ask, key, Problem } from "./api.js";
import { confirmed } from "./dialog.js";
import { fill, h } from "./dom.js";
import { jobPage } from "./job.js";
import { jobsPage } from "./jobs.js";
import { newExport } from "./new.js";
import { operationsPage } from "./operations.js";

const main = document.getElementById("main");
let me = null;
let leaving = new AbortController();

/** The screen of a path, and its entry in the menu. */
function screenOf([first, second]) {
  if (first === "jobs") return second ? [jobPage, "jobs", "Job"] : [jobsPage, "jobs", "Jobs"];
  if (first === "operations" && me.admin) return [operationsPage, "operations", "Operations"];
  return [newExport, "new", "New export"];
}

async function go() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const fail = (error) => {
    if (signal.aborted) return;
    if (error.status === 401) signIn();
    else trouble(error);
  };
  await takeKey(signal);
  if (signal.aborted) return;
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  try {
    me ??= await ask("GET", "/api/me");
    const parts = path.split("/").filter(Boolean);
    const [screen, entry, title] = screenOf(parts);
    menu(entry);
    document.title = `${title} · Reelbroker`;
    await screen(main, { me, path: parts, query: new URLSearchParams(query), signal, fail });
    if (go.moved && !signal.aborted) main.querySelector("h1")?.focus();
    go.moved = true;
  } catch (error) {
    fail(error);
  }
}

/**
 * `#key=…`, as `reelbroker up` prints it: signs in, and leaves nothing of it in the address.
 * Anybody can make such a link, so the page asks before it replaces a stored key.
 */
async function takeKey(signal) {
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

const isWanted = (signal) =>
  confirmed({
    title: "Use the key from this link?",
    text:
      "Another key is stored in this browser. With the key from the link, you work as its owner: " +
      "they see what you upload and export. Use it only if you trust whoever gave you the link.",
    yes: "Use the new key",
    no: "Keep my key",
    signal,
  });

function menu(current) {
  const entries = [["new", "New export"], ["jobs", "Jobs"], me.admin && ["operations", "Operations"]].filter(Boolean);
  fill(
    document.getElementById("nav"),
    entries.map(([name, text]) => h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, text)),
    h("a", { href: "docs" }, "API"),
  );
  fill(
    document.getElementById("who"),
    h("span", { class: "quiet" }, me.user_id),
    key.get() && h("button", { id: "sign-out", onclick: signOut }, "Sign out"),
  );
}

function signOut() {
  forgetUser();
  go();
}

/** Forgets the key, and what else this browser has stored for its owner. */
function forgetUser() {
  me = null;
  for (const name of Object.keys(localStorage)) if (name.startsWith("reelbroker-")) localStorage.removeItem(name);
}

function signIn(refused = key.get() && "The broker does not know this key.") {
  me = null;
  fill(document.getElementById("nav"));
  fill(document.getElementById("who"));
  const given = h("input", {
    type: "password",
    id: "key",
    autocomplete: "current-password",
    required: true,
    "aria-describedby": "key-hint",
  });
  const enter = (event) => {
    event.preventDefault();
    if (!key.isOne(given.value.trim())) return signIn("This is no key: it has spaces or other characters that none has.");
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
      refused && h("p", { class: "alert", role: "alert" }, refused),
      h("label", { for: "key" }, "Your key"),
      given,
      h(
        "p",
        { class: "quiet", id: "key-hint" },
        "It begins with rb_. An operator makes one with “reelbroker keys create”; on your own machine, “reelbroker up” prints it. It stays in this browser.",
      ),
      h("button", { class: "main" }, "Sign in"),
    ),
  );
  given.focus();
}

function trouble(error) {
  if (!(error instanceof Problem)) console.error(error);
  const [title, told] =
    error.status === 404 ? ["Not here", "There is no such job, or it is another user's."] : ["That did not work", error.message];
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
