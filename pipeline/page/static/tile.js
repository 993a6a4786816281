// One source's picture with its state and its zones.

import { element } from "./element.js";
import { ZoneLayer } from "./zones.js";

export const LABELS = {
  connecting: "Connecting",
  running: "Running",
  stalled: "Stalled",
  reconnecting: "Reconnecting",
  ended: "Ended",
  failed: "Failed",
};

const CAMERA = "M4 8h3l2-3h6l2 3h3v11H4zM12 10.5a3 3 0 1 0 0 6a3 3 0 1 0 0-6";
const POLYGON = "M5 9l8-5 7 6-3 9H7z";
const CORNERS = "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5";

function iconButton(label, path, onclick) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(document.createElementNS(drawing.namespaceURI, "path"));
  drawing.firstChild.setAttribute("d", path);
  return element("button", { type: "button", className: "icon", ariaLabel: label, title: label, onclick }, drawing);
}

export class Tile {
  // on: {choose(), snapshot(), fullscreen(), zone(), shaped()}
  constructor(name, colour, on) {
    this.name = name;
    this.blob = null;
    this.next = null;
    this.drawing = false;
    this.paused = false;
    this.on = on;
    this.canvas = element("canvas", { width: 640, height: 360 });
    this.layer = new ZoneLayer(this.canvas);
    this.title = element("strong");
    this.detail = element("span");
    this.notice = element("div", { className: "notice", hidden: true }, this.title, this.detail);
    this.picture = element(
      "button",
      { type: "button", className: "picture", ariaLabel: `Enlarge ${name}`, onclick: on.choose },
      this.canvas,
    );
    this.chip = element("span", { className: "chip" });
    this.warning = element("span", { className: "chip warning", hidden: true });
    this.unlike = element("span", { className: "chip warning", hidden: true, textContent: "unlike", title: "Unlike what was verified" });
    this.numbers = element("span", { className: "numbers" });
    this.dot = element("i", { className: "dot" });
    this.colour(colour);
    this.stage = element("div", { className: "stage" }, this.picture, this.layer.root, this.notice);
    this.zoneButton = iconButton(`Draw a zone on ${name}`, POLYGON, on.zone);
    this.zoneButton.hidden = true;
    this.root = element(
      "figure",
      { className: "tile" },
      this.stage,
      element(
        "figcaption",
        {},
        element("div", { className: "who" }, this.dot, element("span", { className: "name", textContent: name, title: name }), this.chip, this.warning, this.unlike),
        element(
          "div",
          { className: "what" },
          this.numbers,
          this.zoneButton,
          iconButton(`Snapshot of ${name}`, CAMERA, on.snapshot),
          iconButton(`${name} in full screen`, CORNERS, on.fullscreen),
        ),
      ),
    );
  }

  colour(colour) {
    this.dot.style.background = `var(${colour})`;
  }

  get aspect() {
    return this.canvas.width / this.canvas.height;
  }

  // An editor's layer over the picture and its form below, or null: no more.
  edit(svg, form) {
    this.picture.inert = svg !== null;
    this.editing = svg;
    for (const part of this.root.querySelectorAll(".editor, .zone-form")) part.remove();
    if (svg === null) return;
    this.stage.append(svg);
    this.stage.after(form);
  }

  // Draws the newest picture; one that comes while another is decoded replaces the one that waits.
  show(blob, done) {
    this.next?.done();
    this.next = { blob, done };
    if (!this.drawing) this.draw();
  }

  async draw() {
    this.drawing = true;
    while (this.next !== null) {
      const { blob, done } = this.next;
      this.next = null;
      try {
        const bitmap = await createImageBitmap(blob);
        if (this.paused) {
          bitmap.close(); // what is looked at stays
          continue;
        }
        if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
          this.canvas.width = bitmap.width;
          this.canvas.height = bitmap.height;
          this.on.shaped();
          this.layer.draw();
        }
        this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
        bitmap.close();
        this.blob = blob;
        this.root.classList.add("drawn");
      } finally {
        done();
      }
    }
    this.drawing = false;
  }

  pause(paused) {
    this.paused = paused;
    this.root.classList.toggle("paused", paused);
  }

  tell(facts) {
    const running = facts.state === "running";
    const stale = running && facts.stale; // the picture is new, its mask is not
    this.unlike.hidden = !facts.drift?.unlike;
    if (JSON.stringify(this.layer.areas) !== JSON.stringify(facts.zones)) {
      this.layer.areas = facts.zones;
      this.layer.draw();
    }
    this.chip.textContent = stale ? "stale mask" : LABELS[facts.state].toLowerCase();
    this.chip.dataset.state = stale ? "stalled" : facts.state;
    this.numbers.textContent = running ? `${facts.rate_out_hz.toFixed(1)} FPS · ${facts.age_ms.toFixed(0)} ms` : "";
    this.warning.hidden = facts.not_finite === 0;
    this.warning.textContent = `${facts.not_finite.toLocaleString("en")} NaN or infinite`;
    const seconds = `${Math.floor(facts.state_s)} s`;
    let text = LABELS[facts.state];
    if (facts.state === "reconnecting") text += ` ${seconds}, try ${facts.reconnects}`;
    else if (facts.state !== "ended" && facts.state !== "failed") text += ` ${seconds}`;
    this.dim(!running, text, facts.problem);
  }

  lose(problem) {
    this.chip.textContent = "disconnected";
    this.chip.dataset.state = "failed";
    this.numbers.textContent = "";
    this.dim(true, "Disconnected", problem);
  }

  dim(off, title, detail) {
    this.root.classList.toggle("off", off);
    this.notice.hidden = !off;
    this.title.textContent = title;
    this.detail.textContent = detail;
  }

  // The picture as it came, under a name with the source and the time in UTC.
  save() {
    if (this.blob === null) return false;
    const stamp = new Date().toISOString().replace(/[-:]/g, "");
    const address = URL.createObjectURL(this.blob);
    element("a", { href: address, download: `${this.name.replace(/[^\w.-]+/g, "_")}_${stamp}.jpg` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    return true;
  }
}
