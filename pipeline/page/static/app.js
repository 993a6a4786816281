// The page: pictures, settings, figures and keys.

import { Agreement, ago } from "./agreement.js";
import { Chart } from "./chart.js";
import { element } from "./element.js";
import { Figures } from "./figures.js";
import { Live } from "./live.js";
import { LABELS, Tile } from "./tile.js";
import { term } from "./words.js";
import { ZoneEditor } from "./zones.js";

const LENGTH = 300; // seconds that are plotted
const COLOURS = 6;
const SETTLE_MS = 600; // a setting that was just changed here is not overwritten by an older state
const SEND_EVERY_MS = 50;
const WITH_BACKGROUND = ["cutout", "replace"];
const SHARED_KEYS = "mMn+=-[]bhl";
const SMOOTH = ["auto", "off", "on", "strong"];
const GAP = 16; // between pictures
const LEAST_HEIGHT = 180; // of pictures beside each other
const LEAST_WIDTH = 150;
const NARROW = 420; // where what is below a picture needs two rows
// From the worst on; what is ended is as it should be.
const WORST = ["failed", "reconnecting", "stalled", "connecting"];

const at = (id) => document.getElementById(id);
const colourOf = (source) => `--line-${source % COLOURS}`;

let tiles = [];
let history = [];
let count = 0;
let facts = [];
let single = null; // the source that is enlarged
let paused = false;
let touchedMs = -Infinity;
let greetings = 0;
let readOnly = false;
let zones = [];
let mostZones = 0;
let flightFiles = null;

const charts = [
  new Chart("Frames", "FPS", 0, LENGTH),
  new Chart("Age", "ms", 1, LENGTH, term("age", "Age")),
  new Chart("Dropped", "/ s", 2, LENGTH, term("dropped", "Dropped")),
];
const figures = new Figures(at("figures"));
at("agreement-title").append(term("agreement", "Agreement with the trained network"));
const agreement = new Agreement(at("agreement"));
const editor = new ZoneEditor({
  send: (message) => live.send(message),
  say,
  ended() {
    at("draw-zone").focus({ preventScroll: true });
    arrange();
  },
});
at("charts").append(...charts.map((chart) => chart.root));

const live = new Live({
  open() {
    linkState("live", "live");
  },
  lost(text) {
    linkState("lost", text);
    at("viewers").textContent = "";
    editor.refused(text);
    for (const tile of tiles) tile.lose(text);
  },
  message(message) {
    if (message.type === "hello") greet(message);
    else if (message.type === "state") update(message);
    else if (message.type === "zones") showZones(message);
    else if (message.type === "refused" && !editor.refused(message.text)) toast(message.text);
  },
  picture(source, index, blob) {
    const asked = greetings;
    const shown = () => asked === greetings && live.send({ shown: source }); // else it is another source by now
    if (paused || tiles[source] === undefined) shown(); // was on its way
    else tiles[source].show(blob, shown);
  },
});

function greet({ sources, modes, about, read_only: mayNot, history: past, count: taken }) {
  readOnly = mayNot;
  greetings += 1;
  const names = sources.join("\n");
  if (at("pictures").dataset.names !== names) {
    // Otherwise it is the same server again, and the last pictures stay.
    at("pictures").dataset.names = names;
    const enlarged = single === null ? -1 : sources.indexOf(tiles[single].name);
    const before = tiles;
    tiles = sources.map((name, source) => before.find((tile) => tile.name === name) ?? newTile(name, source));
    tiles.forEach((tile, source) => tile.colour(colourOf(source)));
    if (editor.tile !== null && !tiles.includes(editor.tile)) editor.end(true);
    single = enlarged === -1 || tiles.length === 1 ? null : enlarged;
    facts = [];
    for (const tile of tiles) tile.pause(paused);
    at("pictures").replaceChildren(...tiles.map((tile) => tile.root));
    figures.begin(tiles.map((tile, source) => ({ name: tile.name, colour: colourOf(source) })));
  }
  at("about").textContent = Object.entries(about)
    .filter(([key]) => key !== "version")
    .map(([, value]) => value)
    .join(" · ");
  at("about").title = Object.entries(about)
    .map(([key, value]) => `${key}: ${value}`)
    .join("\n");
  if (at("modes").childElementCount === 0) at("modes").append(...modes.map((mode) => choice("mode", mode, () => chooseMode(mode))));
  for (const id of ["controls", "masks"]) at(id).disabled = readOnly;
  for (const id of ["record", "flight"]) at(id).disabled = readOnly;
  at("read-only").hidden = !readOnly;
  at("shared").hidden = readOnly;
  history = past;
  count = taken;
  arrange();
}

// By name: its colour changes with its place among the others, and what it does too.
function newTile(name, source) {
  const here = () => tiles.findIndex((tile) => tile.name === name);
  const made = new Tile(name, colourOf(source), {
    choose: () => choose(single === null && tiles.length > 1 ? here() : null),
    snapshot: () => snapshot(here()),
    fullscreen: () => fullscreen(here()),
    zone: () => editZone(null, here()),
    shaped: () => layOut(),
  });
  made.layer.zones = zones;
  return made;
}

function choice(name, value, chosen) {
  const input = element("input", { type: "radio", name, value, onchange: chosen });
  return element("label", {}, input, element("span", { textContent: value }));
}
at("smooth").append(...SMOOTH.map((smooth) => choice("smooth", smooth, () => set({ smooth }))));

/** A line that is there for as long as something lasts. */
function showBanner(id, problems) {
  const text = problems.join("; ");
  if (at(id).textContent === text) return; // a screen reader would say it again
  at(id).textContent = text;
  at(id).hidden = !text;
}

function update({ sources, settings, fixed, frames_wide: wide, viewers, outputs, sample, count: taken, audit, flight, recording }) {
  if (sources.length !== tiles.length) return; // those that are there are told next
  showBanner("outputs", outputs);
  facts = sources;
  sources.forEach((each, source) => {
    const { layer } = tiles[source];
    if (layer.wide !== wide) {
      layer.wide = wide;
      layer.draw();
    }
    tiles[source].tell(each);
  });
  if (performance.now() - touchedMs > SETTLE_MS) showSettings(settings, fixed ?? {});
  showWarnings(audit, sources);
  showRecording(recording, flight);
  agreement.tell(
    audit ?? null,
    sources.map(({ drift }, source) => ({ name: tiles[source].name, drift: drift ?? null })),
  );
  showLegend();
  showAreas();
  figures.tell(facts);
  showLink();
  at("viewers").textContent = viewers > 1 ? `${viewers} viewers` : "";
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

// No numbers, which change: it is said once for as long as it lasts.
function showWarnings(audit, sources) {
  const unlike = sources.flatMap(({ drift }, source) => (drift?.unlike ? [tiles[source].name] : []));
  const problems = unlike.length ? [`${unlike.join(", ")}: pictures unlike everything that the bundle was verified on`] : [];
  if (audit?.below) problems.unshift("The masks agree less with the trained network than the bundle's gate asks for");
  showBanner("warnings", problems);
}

function showRecording(recording, flight) {
  at("record-card").hidden = !recording && !flight;
  at("record").hidden = !recording;
  at("record").ariaChecked = String(Boolean(recording?.on));
  at("record-state").textContent = recording?.on ? "on" : "off";
  at("flight").hidden = at("flight-last").hidden = !flight;
  if (!flight) return;
  const files = flight.files === 1 ? "1 file is kept" : `${flight.files} files are kept`;
  at("flight-last").textContent = flight.last ? `${files}; the last one ${ago(flight.last_s ?? 0)}: ${flight.last}.` : `${files}.`;
  if (flightFiles !== null && flight.files > flightFiles) say(`Kept: ${flight.last}`);
  flightFiles = flight.files;
}

// The worst state of all sources, and whose it is.
function showLink() {
  const states = facts.map(({ state }) => state);
  const worst = WORST.find((state) => states.includes(state));
  const stale = facts.some(({ state, stale: is }) => state === "running" && is);
  let [state, text] = ["live", "live"];
  if (worst !== undefined) [state, text] = [worst, LABELS[worst].toLowerCase() + whose((each) => each.state === worst)];
  else if (stale) [state, text] = ["stale", `stale masks${whose((each) => each.stale)}`];
  else if (states.length > 0 && states.every((each) => each === "ended")) [state, text] = ["ended", "ended"];
  else if (states.includes("ended")) text = `live, ended${whose((each) => each.state === "ended")}`;
  if (paused) [state, text] = state === "live" ? ["paused", "paused"] : [state, `paused; ${text}`];
  linkState(state, text);
}

function whose(holds) {
  if (facts.length < 2) return "";
  const names = tiles.filter((_, source) => holds(facts[source])).map(({ name }) => name);
  return names.length > 2 ? `: ${names[0]} and ${names.length - 1} others` : `: ${names.join(" and ")}`;
}

const shown = () => (single === null ? tiles.map((_, source) => source) : [single]);

function arrange() {
  tiles.forEach((tile, source) => {
    tile.root.hidden = single !== null && source !== single;
    tile.picture.ariaLabel = single === null ? `Enlarge ${tile.name}` : "Back to all sources";
    tile.picture.disabled = tiles.length === 1;
    tile.zoneButton.hidden = readOnly || mostZones === 0 || editor.tile !== null;
  });
  at("pictures").dataset.count = shown().length;
  layOut();
  at("all").hidden = single === null;
  watch();
  showLegend();
  plot();
}

// Pictures beside each other are of one height, whatever their shapes: as many rows as leave them high enough.
function layOut() {
  const aspects = shown().map((source) => tiles[source].aspect);
  const width = at("pictures").clientWidth;
  const sum = aspects.reduce((one, other) => one + other, 0);
  let rows = 1;
  const isSmall = (height) => height < LEAST_HEIGHT || Math.min(...aspects) * height < LEAST_WIDTH;
  while (rows < aspects.length && isSmall((width * rows) / sum)) rows += 1;
  // A little less than what fills the rows, into which they then grow.
  const height = (0.9 * (width - GAP * (Math.ceil(aspects.length / rows) - 1)) * rows) / sum;
  at("pictures").classList.toggle("narrow", aspects.length > 1 && Math.min(...aspects) * height < NARROW);
  for (const tile of tiles) {
    tile.root.style.setProperty("--aspect", (100 * tile.aspect).toFixed(2));
    tile.root.style.setProperty("--width", `${Math.floor(tile.aspect * height)}px`);
  }
}

function watch() {
  live.send({ watch: paused || document.hidden ? [] : shown() });
}

function choose(source) {
  single = source;
  arrange();
}

function showSettings(settings, fixed) {
  showMaskSettings(settings, fixed);
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

function showMaskSettings({ smooth, refine_edges: edges, fps }, fixed) {
  at("masks").hidden = smooth === undefined;
  if (smooth === undefined) return;
  for (const input of at("smooth").querySelectorAll("input")) input.checked = input.value === smooth;
  at("refine_edges").checked = edges;
  if (fps !== null) at("fps").value = fps;
  at("fps-value").textContent = fps === null ? "" : `${Number(fps.toFixed(2))} FPS`;
  for (const name of ["refine_edges", "fps"]) {
    at(name).disabled = name in fixed;
    at(`${name}-why`).hidden = !(name in fixed);
    at(`${name}-why`).textContent = name in fixed ? `Not in this run: ${fixed[name]}.` : "";
  }
}

const percent = (share) => `${Math.round(100 * share)} %`;

let legendText = "";
function showLegend() {
  const text = JSON.stringify(shown().map((source) => [tiles[source].name, facts[source]?.legend]));
  if (text === legendText) return; // who reads it is not disturbed
  legendText = text;
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

function showZones({ zones: drawn, file, most, most_points: mostCorners }) {
  zones = drawn;
  mostZones = most;
  for (const { layer } of tiles) {
    layer.zones = zones;
    layer.draw();
  }
  editor.told(zones);
  editor.most = mostCorners;
  const focused = document.activeElement?.dataset?.zone;
  at("zones").replaceChildren(...zones.map(zoneRow));
  if (focused !== undefined) (at("zones").querySelector(`[data-zone="${CSS.escape(focused)}"]`) ?? at("draw-zone")).focus();
  at("zones-card").hidden = false;
  at("zones-none").hidden = zones.length > 0;
  at("draw-zone").hidden = readOnly;
  at("draw-zone").disabled = zones.length >= most;
  const kept = file ? `Kept in ${file}.` : "Not kept after this run: start with --zones-file to keep them.";
  at("zones-kept").textContent = `${tiles.length > 1 ? "Zones are the same on all sources. " : ""}${readOnly ? "" : kept}`;
  showAreas();
  arrange();
}

function zoneRow(zone) {
  const { name, above } = zone;
  const remove = element("button", { type: "button", ariaLabel: `Delete zone ${name}`, textContent: "Delete" });
  remove.onclick = () => {
    // The first press asks, the second one does it.
    if (remove.dataset.sure) live.send({ type: "zone-delete", name });
    remove.dataset.sure = "yes";
    remove.textContent = "Delete?";
    remove.ariaLabel = `Delete zone ${name}, really`;
    say(`Press again to delete zone ${name}`);
    remove.onblur = () => {
      delete remove.dataset.sure;
      remove.textContent = "Delete";
      remove.ariaLabel = `Delete zone ${name}`;
    };
  };
  const edit = element("button", { type: "button", ariaLabel: `Edit zone ${name}`, textContent: "Edit", onclick: () => editZone(zone) });
  edit.dataset.zone = name;
  edit.hidden = remove.hidden = readOnly;
  const limit = above === null ? "" : ` limit ${Number((100 * above).toFixed(2))} %`;
  const text = element("span", {}, element("b", { textContent: name }), element("span", { className: "note", textContent: limit }), element("span", { className: "note area" }));
  return element("li", {}, text, edit, remove);
}

// What is in each zone, of the source that is enlarged or the first one.
function showAreas() {
  const inside = facts[shown()[0]]?.zones ?? {};
  zones.forEach(({ name }, index) => {
    const parts = Object.entries(inside[name] ?? {}).map(([label, { area }]) => `${label} ${(100 * area).toFixed(1)} %`);
    const cell = at("zones").children[index].querySelector(".area");
    const text = parts.join(", ");
    if (cell.textContent !== text) cell.textContent = text;
  });
}

function editZone(zone, source = shown()[0]) {
  if (tiles.length > 1 && single === null) choose(source);
  const taken = new Set(zones.map(({ name }) => name));
  let number = 1;
  while (taken.has(`zone-${number}`)) number += 1;
  editor.begin(tiles[source], zone, `zone-${number}`);
  arrange();
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

// For screen readers: what was done, once.
function say(text) {
  at("said").textContent = text;
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
  showLink();
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
for (const name of ["hud", "legend", "refine_edges"]) at(name).addEventListener("change", () => set({ [name]: at(name).checked }));
at("fps").addEventListener("input", () => {
  at("fps-value").textContent = `${at("fps").value} FPS`;
  set({ fps: Number(at("fps").value) });
});
at("record").addEventListener("click", () => live.send({ type: "record", on: at("record").ariaChecked !== "true" }));
at("flight").addEventListener("click", () => live.send({ type: "flight" }));
at("draw-zone").addEventListener("click", () => editZone(null));
at("shortcuts").checked = localStorage.getItem("shortcuts") !== "off";
at("shortcuts").addEventListener("change", () => localStorage.setItem("shortcuts", at("shortcuts").checked ? "on" : "off"));
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
  if (event.target.closest?.(".zone-form, .editor, input[type=text], input[type=number]")) return;
  if (key.length === 1 && !at("shortcuts").checked) return;
  if (key === "?") help();
  else if (at("help").open) return;
  else if (key === " ") pause();
  else if (key === "s") snapshot(current());
  else if (key === "f") fullscreen();
  else if (key === "Escape") {
    document.body.classList.remove("filled");
    if (editor.tile === null) choose(null);
  } else if (SHARED_KEYS.includes(key)) {
    touchedMs = -Infinity;
    live.send({ key });
  } else return;
  event.preventDefault();
});
document.addEventListener("visibilitychange", watch);
function redraw() {
  layOut();
  plot();
  agreement.draw();
}
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
