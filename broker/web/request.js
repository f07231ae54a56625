// The request as it will be sent: JSON that can be changed, the same for curl, and for the RunPod console.

import { address } from "./api.js";
import { copy, fill, h } from "./dom.js";
import { TYPES } from "./edit.js";

const HINTS = {
  json: "This is what is sent. Change it here for what the page has no button for: speeds, rotation, text styles …",
  curl: "The same from a terminal; $REELBROKER_API_KEY is your key.",
  console: "Paste it into “Requests” of the endpoint in the RunPod console. The result goes to the key that it names.",
};

/** A request as text: "json", "curl" or "console". */
export function asText(request, what, userId) {
  if (what === "json") return JSON.stringify(request, null, 2);
  if (what === "console") {
    const alone = { job_id: "console-test", user_id: userId, output_key: "final_videos/console-test.mp4" };
    return JSON.stringify({ input: { ...request, ...alone } }, null, 2);
  }
  const body = JSON.stringify(request, null, 1).replaceAll("'", "'\\''");
  return `curl -H "Authorization: Bearer $REELBROKER_API_KEY" ${address("/api/jobs")} -d '${body}'`;
}

export class RequestView {
  /** @param onchange told the request that was typed, or null where it is none */
  constructor(userId, onchange) {
    Object.assign(this, { userId, onchange, what: "json" });
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
    this.tabs = h(
      "div",
      { class: "tabs", role: "group", "aria-label": "Show the request as" },
      [
        ["json", "JSON"],
        ["curl", "curl"],
        ["console", "RunPod console"],
      ].map(([what, text]) =>
        h("button", { "data-what": what, "aria-pressed": String(what === "json"), onclick: () => this.turn(what) }, text),
      ),
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

  turn(what) {
    this.what = what;
    for (const tab of this.tabs.children) tab.setAttribute("aria-pressed", String(tab.dataset.what === what));
    this.hint.textContent = HINTS[what];
    this.text.readOnly = what !== "json";
    this.show(this.request);
  }

  show(request) {
    this.request = request;
    this.text.value = asText(request, this.what, this.userId);
  }

  typed() {
    try {
      const request = JSON.parse(this.text.value);
      if (!TYPES.some(([type]) => type === request?.type))
        throw new Error(`"type" must be one of ${TYPES.map(([type]) => type).join(", ")}`);
      if (typeof request.params !== "object" || request.params === null) throw new Error('"params" is missing');
      this.request = request;
      this.complain([]);
      this.onchange(request);
    } catch (error) {
      this.complain([{ pointer: "", detail: `This cannot be sent: ${error.message}` }]);
      this.onchange(null);
    }
  }

  /** Shows what is wrong with the request: {pointer, detail} each. */
  complain(errors) {
    fill(
      this.wrong,
      errors.map(({ pointer, detail }) => h("li", {}, pointer && [h("code", {}, pointer.slice(1).replaceAll("/", " › ")), ": "], detail)),
    );
  }
}
