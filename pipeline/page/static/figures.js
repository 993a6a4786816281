// What is known of each source in numbers; changed in place, so that the focus and a screen reader stay where they are.

import { element } from "./element.js";
import { term } from "./words.js";

const ROWS = [
  ["in / out", (facts) => `${facts.rate_in_hz.toFixed(1)} / ${facts.rate_out_hz.toFixed(1)} FPS`],
  [() => [term("age", "age"), " p50 / p99"], (facts) => `${facts.age_p50_ms.toFixed(0)} / ${facts.age_p99_ms.toFixed(0)} ms`],
  ["frames", (facts) => facts.frames_out.toLocaleString("en")],
  ["with stale masks", (facts) => facts.frames_stale.toLocaleString("en")],
  [() => [term("dropped", "dropped")], (facts) => drops(facts.dropped)],
  ["NaN or infinite", (facts) => facts.not_finite.toLocaleString("en")],
  ["reconnects", (facts) => String(facts.reconnects)],
];

function drops(dropped) {
  const parts = Object.entries(dropped).map(([reason, number]) => `${number.toLocaleString("en")} ${reason}`);
  return parts.join(", ") || "0";
}

export class Figures {
  constructor(root) {
    this.root = root;
    this.cells = [];
  }

  // sources: [{name, colour}]
  begin(sources) {
    this.cells = [];
    const groups = sources.map(({ name, colour }) => {
      const dot = element("i", { className: "dot" });
      dot.style.background = `var(${colour})`;
      const cells = ROWS.map(() => element("dd"));
      this.cells.push(cells);
      const rows = ROWS.map(([title], row) =>
        element("div", {}, element("dt", {}, ...(typeof title === "string" ? [title] : title())), cells[row]),
      );
      return element("div", { className: "figures" }, element("h3", {}, dot, name), element("dl", {}, ...rows));
    });
    this.root.replaceChildren(...groups);
  }

  tell(facts) {
    this.cells.forEach((cells, source) => {
      if (facts[source] === undefined) return;
      ROWS.forEach(([, read], row) => {
        const text = read(facts[source]);
        if (cells[row].textContent !== text) cells[row].textContent = text;
      });
    });
  }
}
