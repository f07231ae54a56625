// A question that comes before all else on the page.

import { h } from "./dom.js";

/**
 * Asks a question with two answers; returns whether it was `yes`. Escape is `no`, and so is leaving
 * the screen. The focus is on `no`: that answer changes nothing.
 * @param {{title: string, text: string, yes: string, no: string, signal: AbortSignal}} question
 * @returns {Promise<boolean>}
 */
export function confirmed({ title, text, yes, no, signal }) {
  return new Promise((resolve) => {
    /** @type {(word: string, value: string, props: Props) => HTMLButtonElement} */
    const answer = (word, value, props) =>
      h("button", { type: "button", onclick: () => dialog.close(value), ...props }, word);
    const dialog = h(
      "dialog",
      { class: "card ask", "aria-labelledby": "ask-title", "aria-describedby": "ask-text" },
      h("h1", { id: "ask-title" }, title),
      h("p", { id: "ask-text" }, text),
      h(
        "div",
        { class: "row" },
        answer(yes, "yes", { id: "ask-yes" }),
        answer(no, "no", { id: "ask-no", class: "main", autofocus: true }),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" && !signal.aborted);
    });
    signal.addEventListener("abort", () => dialog.close("no"), { once: true });
    document.body.append(dialog);
    dialog.showModal();
  });
}
