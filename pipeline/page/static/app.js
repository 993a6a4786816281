// The page: pictures, settings, figures and keys.

import { Chart } from "./chart.js";
import { Live } from "./live.js";
import { Tile, element } from "./tile.js";

const LENGTH = 300; // seconds that are plotted
const COLOURS = 6;
const SETTLE_MS = 600; // a setting that was just changed here is not overwritten by an older state
const SEND_EVERY_MS = 50;
const WITH_BACKGROUND = ["cutout", "replace"];
const SHARED_KEYS = "mMn+=-[]bhl";

const at = (id) => document.getElementById(id);
const colourOf = (source) => `--line-${source % COLOURS}`;

let tiles = [];
let history = [];
let count = 0;
let facts = [];
let single = null; // the source that is enlarged
let paused = false;
let touchedMs = -Infinity;

const charts = [new Chart("Frames", "FPS", 0, LENGTH), new Chart("Age", "ms", 1, LENGTH), new Chart("Dropped", "/ s", 2, LENGTH)];
at("charts").append(...charts.map((chart) => chart.root));

const live = new Live({
  open() {
    linkState("live", "live");
  },
  lost(text) {
    linkState("lost", text);
    for (const tile of tiles) tile.lose(text);
  },
  message(message) {
    if (message.type === "hello") greet(message);
    else if (message.type === "state") update(message);
    else if (message.type === "refused") toast(message.text);
  },
  picture(source, index, blob) {
    const shown = () => live.send({ shown: source });
    if (paused) shown(); // was on its way
    else tiles[source].show(blob, shown);
  },
});

function greet({ sources, modes, about, read_only: readOnly, history: past, count: taken }) {
  const names = sources.join("\n");
  if (at("pictures").dataset.names !== names) {
    // Otherwise it is the same server again, and the last pictures stay.
    at("pictures").dataset.names = names;
    single = null;
    tiles = sources.map(
      (name, source) =>
        new Tile(name, colourOf(source), {
          choose: () => choose(single === null && tiles.length > 1 ? source : null),
          snapshot: () => snapshot(source),
          fullscreen: () => fullscreen(source),
        }),
    );
    for (const tile of tiles) tile.pause(paused);
    at("pictures").replaceChildren(...tiles.map((tile) => tile.root));
  }
  at("about").textContent = Object.entries(about)
    .filter(([key]) => key !== "version")
    .map(([, value]) => value)
    .join(" · ");
  at("about").title = Object.entries(about)
    .map(([key, value]) => `${key}: ${value}`)
    .join("\n");
  if (at("modes").childElementCount === 0) at("modes").append(...modes.map(modeButton));
  at("controls").disabled = readOnly;
  at("read-only").hidden = !readOnly;
  at("shared").hidden = readOnly;
  history = past;
  count = taken;
  arrange();
}

function modeButton(mode) {
  const input = element("input", { type: "radio", name: "mode", value: mode, onchange: () => chooseMode(mode) });
  return element("label", {}, input, element("span", { textContent: mode }));
}

/** What is recorded or sent no more, for as long as that lasts. */
function showOutputs(problems) {
  const line = document.getElementById("outputs");
  const text = problems.join("; ");
  if (line.textContent === text) return; // a screen reader would say it again
  line.textContent = text;
  line.hidden = !text;
}

function update({ sources, settings, viewers, outputs, sample, count: taken }) {
  showOutputs(outputs);
  facts = sources;
  sources.forEach((each, source) => tiles[source].tell(each));
  if (performance.now() - touchedMs > SETTLE_MS) showSettings(settings);
  showLegend();
  showFigures();
  linkState(paused ? "paused" : "live", paused ? "paused" : viewers > 1 ? `live, ${viewers} viewers` : "live");
  if (taken > count) {
    history.forEach((samples, source) => {
      for (let missed = Math.min(taken - count - 1, LENGTH); missed > 0; missed -= 1) samples.push([null, null, null]);
      if (sample[source] !== null) samples.push(sample[source]);
      samples.splice(0, samples.length - LENGTH);
    });
    count = taken;
    plot();
  }
}

const shown = () => (single === null ? tiles.map((_, source) => source) : [single]);

function arrange() {
  tiles.forEach((tile, source) => {
    tile.root.hidden = single !== null && source !== single;
    tile.picture.ariaLabel = single === null ? `Enlarge ${tile.name}` : "Back to all sources";
    tile.picture.disabled = tiles.length === 1;
  });
  at("pictures").dataset.count = shown().length;
  at("all").hidden = single === null;
  watch();
  showLegend();
  plot();
}

function watch() {
  live.send({ watch: paused || document.hidden ? [] : shown() });
}

function choose(source) {
  single = source;
  arrange();
}

function showSettings(settings) {
  for (const input of at("modes").querySelectorAll("input")) input.checked = input.value === settings.mode;
  for (const name of ["alpha", "threshold"]) {
    at(name).value = settings[name];
    at(`${name}-value`).textContent = percent(settings[name]);
  }
  at("hud").checked = settings.hud;
  at("legend").checked = settings.legend;
  at("background").disabled = !WITH_BACKGROUND.includes(settings.mode);
}

function chooseMode(mode) {
  at("background").disabled = !WITH_BACKGROUND.includes(mode);
  set({ mode });
}

const percent = (share) => `${Math.round(100 * share)} %`;

function showLegend() {
  const groups = shown()
    .filter((source) => facts[source] !== undefined)
    .map((source) => {
      const rows = facts[source].legend.map(([name, colour, share]) => {
        const square = element("i", { className: "square" });
        if (colour !== null) square.style.background = colour;
        const bar = element("span", { className: "bar" }, element("i"));
        bar.firstChild.style.width = `${share}%`;
        if (colour !== null) bar.firstChild.style.background = colour;
        const text = share > 0 && share < 0.1 ? "<0.1 %" : `${share.toFixed(1)} %`;
        return element("li", {}, square, element("span", { textContent: name }), bar, element("b", { textContent: text }));
      });
      const none = element("p", { className: "note", textContent: "nothing in view" });
      const title = shown().length > 1 ? [element("h3", { textContent: tiles[source].name })] : [];
      return element("div", {}, ...title, rows.length ? element("ul", {}, ...rows) : none);
    });
  at("classes").replaceChildren(...groups);
}

function showFigures() {
  const rows = facts.map((each, source) => {
    const drops = Object.entries(each.dropped).map(([reason, number]) => `${number} ${reason}`);
    const dot = element("i", { className: "dot" });
    dot.style.background = `var(${colourOf(source)})`;
    const cells = [
      ["in / out", `${each.rate_in_hz.toFixed(1)} / ${each.rate_out_hz.toFixed(1)} FPS`],
      ["age p50 / p99", `${each.age_p50_ms.toFixed(0)} / ${each.age_p99_ms.toFixed(0)} ms`],
      ["frames", each.frames_out.toLocaleString("en")],
      ["with stale masks", each.frames_stale.toLocaleString("en")],
      ["dropped", drops.join(", ") || "0"],
      ["NaN or infinite", each.not_finite.toLocaleString("en")],
      ["reconnects", String(each.reconnects)],
    ];
    const list = cells.map(([name, value]) =>
      element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })),
    );
    const title = element("h3", {}, dot, tiles[source].name);
    return element("div", { className: "figures" }, title, element("dl", {}, ...list));
  });
  at("figures").replaceChildren(...rows);
}

function plot() {
  const lines = shown()
    .filter((source) => history[source] !== undefined)
    .map((source) => ({ name: tiles[source].name, colour: colourOf(source), samples: history[source] }));
  for (const chart of charts) chart.draw(lines);
}

function linkState(state, text) {
  at("link").dataset.state = state;
  if (at("link").textContent !== text) at("link").textContent = text;
}

let toastTimer = 0;
function toast(text) {
  at("toast").textContent = text;
  at("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (at("toast").hidden = true), 4000);
}

// What the viewer does.

let pending = {};
let sendTimer = 0;
function set(settings) {
  // A slider moves faster than the server needs to know.
  touchedMs = performance.now();
  pending = { ...pending, ...settings };
  if (sendTimer !== 0) return;
  sendTimer = setTimeout(() => {
    sendTimer = 0;
    live.send({ set: pending });
    pending = {};
  }, SEND_EVERY_MS);
}

function pause() {
  paused = !paused;
  at("pause").classList.toggle("on", paused);
  at("pause").textContent = paused ? "Go on" : "Pause";
  linkState(paused ? "paused" : "live", paused ? "paused" : "live");
  for (const tile of tiles) tile.pause(paused);
  watch();
}

function snapshot(source) {
  if (!tiles[source].save()) toast(`${tiles[source].name}: no picture yet`);
}

// The source that a key means: the enlarged one, or that under the pointer or the focus.
function current() {
  if (single !== null) return single;
  return Math.max(0, tiles.findIndex((tile) => tile.root.matches(":hover, :focus-within")));
}

function fullscreen(source) {
  if (document.fullscreenElement !== null) document.exitFullscreen();
  else if (document.body.classList.contains("filled")) document.body.classList.remove("filled");
  else {
    if (source !== undefined) choose(tiles.length > 1 ? source : null);
    // Telephones that know no full screen for a part of a page fill the page with it.
    const asked = at("pictures").requestFullscreen?.();
    if (asked === undefined) document.body.classList.add("filled");
    else asked.catch((error) => toast(`full screen: ${error.message}`));
  }
}

function help() {
  if (at("help").open) at("help").close();
  else at("help").showModal();
}

for (const name of ["alpha", "threshold"]) {
  at(name).addEventListener("input", () => {
    at(`${name}-value`).textContent = percent(at(name).value);
    set({ [name]: Number(at(name).value) });
  });
}
for (const name of ["hud", "legend"]) at(name).addEventListener("change", () => set({ [name]: at(name).checked }));
at("background").addEventListener("click", () => live.send({ key: "b" }));
at("pause").addEventListener("click", pause);
at("all").addEventListener("click", () => choose(null));
at("help-button").addEventListener("click", help);
at("help").addEventListener("click", ({ target }) => target === at("help") && at("help").close());

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key } = event;
  const onButton = event.target.closest?.("button, input[type=checkbox], input[type=radio]");
  if (key === " " && onButton) return; // it presses the button
  if (key === "?") help();
  else if (at("help").open) return;
  else if (key === " ") pause();
  else if (key === "s") snapshot(current());
  else if (key === "f") fullscreen();
  else if (key === "Escape") {
    document.body.classList.remove("filled");
    choose(null);
  } else if (SHARED_KEYS.includes(key)) {
    touchedMs = -Infinity;
    live.send({ key });
  } else return;
  event.preventDefault();
});
document.addEventListener("visibilitychange", watch);
addEventListener("resize", plot);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", plot);
