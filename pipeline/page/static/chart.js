// A line for each source over the last minutes, on a plain canvas.

import { element } from "./element.js";

const STEP = 60;
const LABEL = 56; // what the name of a minute takes
const HEIGHT = 84;
const LEFT = 34;
const BOTTOM = 16;
const TOP = 6;

export class Chart {
  // column: position of the value in a sample; unit: written after the value.
  // head: the title, or what stands in its place.
  constructor(title, unit, column, length, head = element("span", { textContent: title })) {
    this.title = title;
    this.unit = unit;
    this.column = column;
    this.length = length;
    this.now = element("span", { className: "now" });
    this.canvas = element("canvas", { role: "img" });
    this.root = element(
      "div",
      { className: "chart" },
      element("div", { className: "chart-title" }, head, this.now),
      this.canvas,
    );
  }

  // lines: [{name, colour, samples}], oldest sample first; a value that is null leaves a gap.
  draw(lines) {
    const width = this.canvas.clientWidth;
    if (width === 0) return;
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(HEIGHT * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const values = lines.flatMap((line) => line.samples.map((sample) => sample[this.column] ?? 0));
    const top = niceTop(Math.max(...values, 0));
    const right = width - 4;
    const x = (age) => right - (age / (this.length - 1)) * (right - LEFT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);

    pen.font = `11px ${style.getPropertyValue("--font")}`;
    pen.fillStyle = style.getPropertyValue("--muted");
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const value of [0, top / 2, top]) {
      const at = Math.round(y(value)) + 0.5;
      line(pen, [[LEFT, at], [right, at]]);
      pen.fillText(short(value), LEFT - 6, at);
    }
    pen.textBaseline = "alphabetic";
    const apart = ((right - LEFT) * STEP) / this.length < LABEL ? 2 * STEP : STEP;
    for (let age = 0; age < this.length; age += apart) {
      pen.textAlign = age === 0 ? "right" : "center";
      pen.fillText(age === 0 ? "now" : `−${age / STEP} min`, x(age), HEIGHT - 3);
    }
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    for (const { colour, samples } of lines) {
      pen.strokeStyle = pen.fillStyle = style.getPropertyValue(colour);
      let run = [];
      samples.forEach((sample, position) => {
        const value = sample[this.column];
        if (value === null) {
          stroke(pen, run);
          run = [];
        } else run.push([x(samples.length - 1 - position), y(value)]);
      });
      stroke(pen, run);
    }
    const newest = lines.map(({ name, colour, samples }) => {
      const value = samples.at(-1)?.[this.column] ?? null;
      const made = element("b", { textContent: value === null ? "–" : value.toFixed(value < 100 ? 1 : 0) });
      if (lines.length > 1) made.style.color = `var(${colour})`;
      return { name, made };
    });
    this.now.replaceChildren(...newest.map(({ made }) => made), this.unit);
    const words = newest.map(({ name, made }) => `${name} ${made.textContent} ${this.unit}`);
    this.canvas.ariaLabel = `${this.title}, now: ${words.join(", ")}`;
  }
}

function stroke(pen, points) {
  if (points.length === 1) pen.fillRect(points[0][0] - 1, points[0][1] - 1, 2, 2);
  else if (points.length > 1) line(pen, points);
}

function line(pen, points) {
  pen.beginPath();
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.stroke();
}

// The smallest of 1, 2, 4, 6, 10 times a power of ten that holds the value.
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 4, 6, 10].find((factor) => factor * power >= value) * power;
}

function short(value) {
  if (value >= 10000) return `${Math.round(value / 1000)}k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}
