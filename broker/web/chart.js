// Charts as SVG, each with its numbers as a table for whoever cannot see it.

import { h } from "./dom.js";

const [WIDTH, HEIGHT] = [480, 150];

/**
 * Bars over time, stacked.
 * @param {string} title what is counted
 * @param {{label: string, values: number[], told: string}[]} points one a bar, its values from the
 *   bottom up
 * @param {{name: string, className: string}[]} series what the values are
 * @param {string} unit
 */
export function bars(title, points, series, unit = "") {
  const top = nice(Math.max(...points.map((point) => sum(point.values)), 0));
  const step = WIDTH / points.length;
  const y = (/** @type {number} */ value) => HEIGHT - (value / top) * HEIGHT;
  const lines = [0, 0.5, 1].map((share) => [
    h("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(top * share), y2: y(top * share) }),
    h(
      "text",
      { class: "axis", x: -6, y: y(top * share) + 4, "text-anchor": "end" },
      short(top * share),
    ),
  ]);
  const drawn = points.map((point, index) => {
    let below = 0;
    return h(
      "g",
      {},
      h("title", {}, point.told),
      h("rect", { class: "hit", x: index * step, y: 0, width: step, height: HEIGHT }),
      point.values.map((value, which) => {
        below += value;
        return (
          value > 0 &&
          h("rect", {
            class: `bar ${series[which].className}`,
            x: index * step + 1.5,
            y: y(below),
            width: step - 3,
            height: y(below - value) - y(below),
            rx: 1.5,
          })
        );
      }),
    );
  });
  const every = Math.ceil(points.length / 6);
  const labels = points.map(
    (point, index) =>
      index % every === 0 &&
      h(
        "text",
        { class: "axis", x: (index + 0.5) * step, y: HEIGHT + 18, "text-anchor": "middle" },
        point.label,
      ),
  );
  const legend =
    series.length > 1 &&
    h(
      "ul",
      { class: "legend" },
      series.map(({ name, className }) => h("li", { class: className }, name)),
    );
  return h(
    "figure",
    { class: "card chart" },
    h("figcaption", {}, h("h2", {}, title), legend),
    h(
      "svg",
      {
        viewBox: `-44 -10 ${WIDTH + 54} ${HEIGHT + 36}`,
        role: "img",
        "aria-label": `${title}, ${points.length} bars; the numbers are in the table below`,
      },
      lines,
      drawn,
      labels,
    ),
    numbers(
      ["Hour", ...series.map(({ name }) => name)],
      points.map((point) => [
        point.label,
        ...point.values.map((value) => `${short(value)}${unit}`),
      ]),
    ),
  );
}

/**
 * Shares of a whole, or counts side by side.
 * @param {string} title
 * @param {{name: string, value: number, className: string}[]} items
 * @param {string} nothing what to say where every count is 0
 */
export function ranks(title, items, nothing = "") {
  const most = Math.max(...items.map(({ value }) => value), 1);
  return h(
    "figure",
    { class: "card chart" },
    h("figcaption", {}, h("h2", {}, title)),
    items.every(({ value }) => value === 0) && nothing !== ""
      ? h("p", { class: "quiet" }, nothing)
      : h(
          "dl",
          { class: "ranks" },
          items.map(({ name, value, className }) => [
            h("dt", {}, name),
            h(
              "dd",
              {},
              h("span", {
                class: `fill ${className}`,
                style: { width: `${(100 * value) / most}%` },
              }),
              h("span", {}, String(value)),
            ),
          ]),
        ),
  );
}

const numbers = (/** @type {string[]} */ head, /** @type {string[][]} */ rows) =>
  h(
    "details",
    {},
    h("summary", {}, "Numbers"),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers" },
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
          rows.map(([label, ...cells]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, label),
              cells.map((cell) => h("td", {}, cell)),
            ),
          ),
        ),
      ),
    ),
  );

const sum = (/** @type {number[]} */ values) => values.reduce((total, value) => total + value, 0);
const short = (/** @type {number} */ value) =>
  value >= 1000
    ? `${Number((value / 1000).toFixed(1))}k`
    : String(Number(value.toFixed(value < 10 ? 1 : 0)));

/** The next number up that reads well on an axis. */
function nice(/** @type {number} */ value) {
  if (value <= 2) return 2;
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = power < 10 ? [2, 4, 6, 8, 10] : [1, 2, 3, 4, 5, 6, 8, 10];
  return power * (steps.find((step) => step * power >= value) ?? 10);
}
