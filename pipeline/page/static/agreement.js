// Whether the masks are still those of the network that was trained, and the pictures those that it was verified on.

import { element } from "./element.js";
import { term } from "./words.js";

const HEIGHT = 84;
const LEFT = 40;
const TOP = 8;
const BOTTOM = 8;
const MOST = 100;
const SMALL = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
const UNITS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
];

export function ago(seconds) {
  for (const [unit, length] of UNITS) {
    const count = Math.floor(seconds / length);
    if (count > 0) return `${SMALL[count] ?? count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

export class Agreement {
  constructor(root) {
    this.root = root;
    this.audit = null;
    this.now = element("p", { className: "agreement" });
    this.canvas = element("canvas", { role: "img" });
    this.detail = element("p", { className: "note" });
    this.drifts = element("dl", {});
    root.append(this.now, this.canvas, this.detail, this.drifts);
  }

  // audit: null or the state's; drifts: [{name, drift}], null where nothing is known.
  tell(audit, drifts) {
    this.audit = audit;
    const known = drifts.filter(({ drift }) => drift);
    this.root.hidden = !audit && known.length === 0;
    for (const part of [this.now, this.canvas, this.detail]) part.hidden = !audit;
    if (audit) {
      this.now.classList.toggle("below", audit.below);
      this.now.textContent = audit.count === 0 ? "no frame compared yet" : sentence(audit, drifts.length > 1);
      this.detail.textContent = details(audit);
      this.draw();
    }
    this.tellDrifts(known);
  }

  tellDrifts(known) {
    this.drifts.hidden = known.length === 0;
    const names = JSON.stringify(known.map(({ name }) => name));
    if (this.drifts.dataset.names !== names) {
      this.drifts.dataset.names = names;
      const rows = known.map(({ name }, index) =>
        element("div", {}, element("dt", {}, index === 0 ? term("drift", "drift") : "drift", known.length > 1 ? ` of ${name}` : ""), element("dd")),
      );
      this.drifts.replaceChildren(...rows);
    }
    known.forEach(({ drift }, index) => {
      const cell = this.drifts.children[index].lastChild;
      cell.textContent = `${drift.distance.toFixed(2)} of ${drift.limit.toFixed(2)}${drift.unlike ? ", unlike" : ""}`;
      cell.classList.toggle("below", drift.unlike);
    });
  }

  draw() {
    const { audit, canvas } = this;
    const width = canvas.clientWidth;
    if (!audit || width === 0) return;
    const ratio = devicePixelRatio;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name);
    const values = audit.values.slice(-MOST);
    const lowest = Math.min(...values, audit.gate ?? 1, 0.99);
    const bottom = Math.max(0, Math.floor((lowest - 0.002) * 100) / 100);
    const y = (value) => HEIGHT - BOTTOM - ((value - bottom) / (1 - bottom)) * (HEIGHT - BOTTOM - TOP);
    const x = (position) => LEFT + 4 + (position / (MOST - 1)) * (width - LEFT - 10);
    pen.font = `11px ${colour("--font")}`;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of [bottom, 1]) {
      pen.fillStyle = colour("--line");
      pen.fillRect(LEFT, Math.round(y(value)), width - LEFT - 4, 1);
      pen.fillStyle = colour("--muted");
      pen.fillText(value.toFixed(2), LEFT - 6, y(value));
    }
    if (audit.gate !== null) {
      pen.strokeStyle = pen.fillStyle = colour("--bad");
      pen.setLineDash([5, 4]);
      pen.beginPath();
      pen.moveTo(LEFT, y(audit.gate));
      pen.lineTo(width - 4, y(audit.gate));
      pen.stroke();
      // Where the axis has no number of its own.
      if (Math.abs(y(audit.gate) - y(bottom)) > 12 && Math.abs(y(audit.gate) - y(1)) > 12) pen.fillText("gate", LEFT - 6, y(audit.gate));
    }
    values.forEach((value, position) => {
      pen.fillStyle = colour(audit.gate !== null && value < audit.gate ? "--bad" : "--line-0");
      pen.beginPath();
      pen.arc(x(MOST - values.length + position), y(value), 2.2, 0, 7);
      pen.fill();
    });
    const range = values.length ? `from ${Math.min(...values).toFixed(3)} to ${Math.max(...values).toFixed(3)}` : "none yet";
    const gate = audit.gate === null ? "" : `, gate ${audit.gate.toFixed(3)}`;
    canvas.ariaLabel = `Agreement of the last ${values.length} frames that were compared: ${range}${gate}`;
  }
}

function sentence({ mean, worst, worst_s: seconds, worst_source: source }, many) {
  return `agreement ${mean.toFixed(3)}, worst ${worst.toFixed(2)} ${ago(seconds)}${many && source ? ` (${source})` : ""}`;
}

function details({ total, skipped, low, gate, empties, count }) {
  const parts = [`${total.toLocaleString("en")} compared${skipped ? `, ${skipped.toLocaleString("en")} skipped` : ""}`];
  if (count > 0 && gate !== null) parts.push(`lower end of the mean ${low.toFixed(3)}, gate ${gate.toFixed(3)}`);
  if (empties) parts.push(`${empties} with a mask of one network alone`);
  return `${parts.join("; ")}.`;
}
