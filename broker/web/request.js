// The request as it will be sent: JSON that can be changed, the same for curl, and for the RunPod
// console.

import { address, saying } from "./api.js";
import { copy, fill, h } from "./dom.js";
import { TYPES } from "./edit.js";

/** @typedef {"json" | "curl" | "console"} Way */

/** @type {[Way, string][]} */
const WAYS = [
  ["json", "JSON"],
  ["curl", "curl"],
  ["console", "RunPod console"],
];
const HINTS = {
  json:
    "This is what is sent. Change it here for what the page has no button for: speeds, rotation, " +
    "text styles …",
  curl: "The same from a terminal; $REELBROKER_API_KEY is your key.",
  console:
    "Paste it into “Requests” of the endpoint in the RunPod console. The result goes to the key " +
    "that it names.",
};

/**
 * A request as text.
 * @param {ExportRequest} request
 * @param {Way} what
 * @param {string} userId
 */
export function asText(request, what, userId) {
  if (what === "json") return JSON.stringify(request, null, 2);
  if (what === "console") {
    const alone = {
      job_id: "console-test",
      user_id: userId,
      output_key: "final_videos/console-test.mp4",
    };
    return JSON.stringify({ input: { ...request, ...alone } }, null, 2);
  }
  const body = JSON.stringify(request, null, 1).replaceAll("'", "'\\''");
  const header = `-H "Authorization: Bearer $REELBROKER_API_KEY"`;
  return `curl ${header} ${address("/api/jobs")} -d '${body}'`;
}

export class RequestView {
  /**
   * @param {string} userId
   * @param {(request: ExportRequest | null) => void} onchange called with the request that was
   *   typed, or null where it is none
   */
  constructor(userId, onchange) {
    this.userId = userId;
    this.onchange = onchange;
    /** @type {Way} */
    this.what = "json";
    /** @type {ExportRequest | null} */
    this.request = null;
    this.text = h("textarea", {
      id: "json",
      rows: 14,
      spellcheck: "false",
      autocomplete: "off",
      "aria-label": "The request",
      oninput: () => this.typed(),
    });
    this.hint = h("p", { class: "quiet" }, HINTS.json);
    this.wrong = h("ul", { class: "wrong", "aria-live": "polite" });
    this.buttons = WAYS.map(([what, text]) =>
      h(
        "button",
        {
          "data-what": what,
          "aria-pressed": String(what === "json"),
          onclick: () => this.turn(what),
        },
        text,
      ),
    );
    this.tabs = h(
      "div",
      { class: "tabs", role: "group", "aria-label": "Show the request as" },
      this.buttons,
    );
    const copied = h("button", { onclick: () => copy(this.text.value, "Request") }, "Copy");
    this.element = h(
      "section",
      { class: "card request" },
      h("div", { class: "row" }, h("h2", { class: "grow" }, "Request"), this.tabs, copied),
      this.text,
      this.hint,
    );
  }

  turn(/** @type {Way} */ what) {
    this.what = what;
    for (const tab of this.buttons) {
      tab.setAttribute("aria-pressed", String(tab.dataset.what === what));
    }
    this.hint.textContent = HINTS[what];
    this.text.readOnly = what !== "json";
    if (this.request) this.show(this.request);
  }

  show(/** @type {ExportRequest} */ request) {
    this.request = request;
    this.text.value = asText(request, this.what, this.userId);
  }

  typed() {
    try {
      const request = JSON.parse(this.text.value);
      if (!TYPES.some(([type]) => type === request?.type)) {
        throw new Error(`"type" must be one of ${TYPES.map(([type]) => type).join(", ")}`);
      }
      if (typeof request.params !== "object" || request.params === null) {
        throw new Error('"params" is missing');
      }
      this.request = request;
      this.complain([]);
      this.onchange(request);
    } catch (error) {
      this.complain([{ pointer: "", detail: `This cannot be sent: ${saying(error)}` }]);
      this.onchange(null);
    }
  }

  /** Shows what is wrong with the request. */
  complain(/** @type {Objection[]} */ errors) {
    fill(
      this.wrong,
      errors.map(({ pointer, detail }) =>
        h(
          "li",
          {},
          pointer && [h("code", {}, pointer.slice(1).replaceAll("/", " › ")), ": "],
          detail,
        ),
      ),
    );
  }
}
