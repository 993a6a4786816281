// Zones: drawn over every picture, and edited on one of them by mouse, touch or keyboard.

import { element } from "./element.js";

const SVG = "http://www.w3.org/2000/svg";
const STEP = 0.01; // of the frame, for an arrow key
const FINE = 0.001; // with shift
const NAME = "[\\p{L}\\p{N}_\\-]{1,40}";
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const within = (share) => Math.min(1, Math.max(0, Math.round(share * 1e4) / 1e4));
const percent = (share) => `${Math.round(share * 1000) / 10} %`;
const place = ([x, y]) => `${percent(x)} across, ${percent(y)} down`;

export class ZoneLayer {
  constructor(canvas) {
    this.canvas = canvas;
    this.root = shape("svg", { class: "zones", "aria-hidden": "true" });
    this.zones = [];
    this.areas = null;
    this.wide = 1; // frames beside each other in a picture
    this.hidden = null; // the name of a zone that is being edited
    this.onresize = () => {};
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // Where the frame is, in pixels of the layer: a picture keeps its shape within its box.
  frame() {
    const box = this.canvas.getBoundingClientRect();
    const origin = this.root.getBoundingClientRect();
    const scale = Math.min(box.width / this.canvas.width, box.height / this.canvas.height);
    const width = this.canvas.width * scale;
    const height = this.canvas.height * scale;
    return {
      x: box.x - origin.x + (box.width - width) / 2,
      y: box.y - origin.y + (box.height - height) / 2,
      width: width / this.wide,
      height,
    };
  }

  draw() {
    const { x, y, width, height } = this.frame();
    const shapes = [];
    for (const { name, points } of this.zones.filter((zone) => zone.name !== this.hidden)) {
      const classes = Object.values(this.areas?.[name] ?? {});
      for (let copy = 0; copy < this.wide; copy += 1) {
        const at = points.map(([px, py]) => [x + (px + copy) * width, y + py * height]);
        const around = shape("polygon", { class: "around", points: at.join(" ") });
        const polygon = shape("polygon", { points: at.join(" ") });
        polygon.classList.toggle("present", classes.some((each) => each.present));
        const middle = (axis) => at.reduce((sum, each) => sum + each[axis], 0) / at.length;
        const label = shape("text", { x: middle(0), y: middle(1) });
        label.textContent = name;
        shapes.push(around, polygon, label);
      }
    }
    this.root.replaceChildren(...shapes);
    this.onresize();
  }
}

export class ZoneEditor {
  // on: {send(message), say(text), ended()}
  constructor(on) {
    this.on = on;
    this.tile = null;
  }

  // zone: the one that is edited; null: a new one is drawn.
  begin(tile, zone, name) {
    this.end(false);
    this.tile = tile;
    this.was = zone?.name ?? null;
    this.corners = zone === null ? [] : zone.points.map((point) => [...point]);
    this.open = zone === null; // a click adds a corner at the end
    this.selected = null;
    this.cross = null;
    this.dragged = null;
    this.waiting = null;
    this.build(zone, name);
    tile.edit(this.svg, this.form);
    tile.layer.hidden = this.was;
    tile.layer.onresize = () => this.place();
    tile.layer.draw();
    this.svg.focus({ preventScroll: true });
    tile.root.scrollIntoView({ block: "nearest" });
  }

  build(zone, name) {
    this.outline = shape("polygon");
    this.handles = shape("g");
    this.mark = shape("path", { class: "cross" });
    this.svg = shape(
      "svg",
      { class: "zones editor", tabindex: "0", role: "application", "aria-label": `Corners of the zone, on ${this.tile.name}`, "aria-describedby": "zone-how" },
      this.outline,
      this.handles,
      this.mark,
    );
    this.svg.addEventListener("pointerdown", (event) => this.press(event));
    this.svg.addEventListener("pointermove", (event) => this.drag(event));
    for (const kind of ["pointerup", "pointercancel"]) this.svg.addEventListener(kind, () => (this.dragged = null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("keyup", ({ key }) => key in ARROWS && this.tell());
    this.svg.addEventListener("focusin", ({ target }) => this.choose(target.dataset?.corner === undefined ? null : Number(target.dataset.corner)));
    this.name = element("input", { type: "text", maxLength: 40, pattern: NAME, required: true, autocomplete: "off", spellcheck: false, value: zone?.name ?? name });
    this.name.title = "Letters, digits, _ and -";
    this.above = element("input", { type: "number", min: "0.01", max: "100", step: "any", value: zone?.above ? String(Math.round(zone.above * 1e4) / 100) : "" });
    this.above.setAttribute("aria-describedby", "zone-limit");
    this.add = element("button", { type: "button", textContent: "Add corner", onclick: () => this.insert() });
    this.remove = element("button", { type: "button", textContent: "Remove corner", onclick: () => this.removeCorner() });
    this.count = element("p", { className: "note" });
    this.problem = element("p", { className: "problem", role: "alert" });
    const how = "Click or tap the picture to set corners, and drag them. Keys: arrows move the cross or a corner (with shift by little), "
      + "Enter sets a corner, Tab goes to the next one, + adds one behind it, Delete removes it, Escape cancels.";
    this.form = element(
      "form",
      { className: "zone-form", ariaLabel: this.was === null ? "New zone" : `Zone ${this.was}`, noValidate: false },
      element("p", { className: "note", id: "zone-how", textContent: how }),
      element(
        "div",
        { className: "fields" },
        element("label", {}, "Name ", this.name),
        element("label", {}, "Limit in % ", this.above),
        element("p", { className: "note", id: "zone-limit", textContent: "With a limit, an event also tells when a class covers so much of the zone." }),
      ),
      this.problem,
      element(
        "div",
        { className: "buttons" },
        element("button", { type: "submit", className: "on", textContent: "Save zone" }),
        this.add,
        this.remove,
        element("button", { type: "button", textContent: "Cancel", onclick: () => this.end(true) }),
        this.count,
      ),
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
    this.form.addEventListener("keydown", ({ key }) => key === "Escape" && this.end(true));
    this.rebuild();
  }

  // One handle for each corner, and one between two of a closed shape.
  rebuild() {
    const handle = (index) => {
      const made = shape("g", { class: "corner", role: "button", tabindex: "0" }, shape("circle", { class: "reach", r: 20 }), shape("circle", { class: "dot", r: 7 }));
      made.dataset.corner = index;
      return made;
    };
    const middle = (index) => {
      const made = shape("g", { class: "middle" }, shape("circle", { class: "reach", r: 14 }), shape("circle", { class: "dot", r: 4 }));
      made.dataset.after = index;
      return made;
    };
    const middles = this.open ? [] : this.corners.map((_, index) => middle(index));
    this.handles.replaceChildren(...middles, ...this.corners.map((_, index) => handle(index)));
    this.place();
  }

  place() {
    const { x, y, width, height } = this.tile.layer.frame();
    const pixel = ([px, py]) => [x + px * width, y + py * height];
    this.outline.setAttribute("points", this.corners.map(pixel).join(" "));
    const count = this.corners.length;
    for (const handle of this.handles.children) {
      const { corner, after } = handle.dataset;
      const index = Number(corner ?? after);
      const [one, next] = [this.corners[index], this.corners[(index + 1) % count]];
      const at = corner === undefined ? [(one[0] + next[0]) / 2, (one[1] + next[1]) / 2] : one;
      handle.setAttribute("transform", `translate(${pixel(at)})`);
      if (corner !== undefined) {
        handle.setAttribute("aria-label", `Corner ${index + 1} of ${count}, ${place(one)}`);
        handle.classList.toggle("selected", index === this.selected);
      }
    }
    if (this.cross === null) this.mark.setAttribute("d", "");
    else {
      const [cx, cy] = pixel(this.cross);
      this.mark.setAttribute("d", `M${x} ${cy}H${x + width}M${cx} ${y}V${y + height}`);
    }
    this.count.textContent = count === 1 ? "1 corner" : `${count} corners`;
    this.add.disabled = this.selected === null || count < 2;
    this.remove.disabled = this.selected === null || (!this.open && count <= 3);
  }

  choose(corner) {
    this.selected = corner;
    if (corner !== null) this.cross = null;
    this.place();
  }

  focusCorner(index) {
    this.handles.querySelector(`[data-corner="${index}"]`)?.focus({ preventScroll: true });
  }

  share({ clientX, clientY }) {
    const { x, y, width, height } = this.tile.layer.frame();
    const origin = this.svg.getBoundingClientRect();
    return [within((clientX - origin.x - x) / width), within((clientY - origin.y - y) / height)];
  }

  press(event) {
    if (event.button !== 0) return;
    event.preventDefault(); // the focus is set here
    const { corner, after } = event.target.closest("g")?.dataset ?? {};
    this.cross = null;
    if (corner !== undefined) {
      this.dragged = Number(corner);
      if (this.open && this.dragged === 0 && this.corners.length >= 3) this.close();
    } else if (after !== undefined) {
      this.dragged = Number(after) + 1;
      this.put(this.dragged, this.share(event));
    } else if (this.open) {
      this.dragged = this.corners.length;
      this.put(this.dragged, this.share(event));
    } else {
      this.svg.focus({ preventScroll: true });
      return;
    }
    this.focusCorner(this.dragged);
    this.svg.setPointerCapture(event.pointerId);
  }

  drag(event) {
    if (this.dragged === null) return;
    this.corners[this.dragged] = this.share(event);
    this.place();
  }

  put(index, corner) {
    if (this.corners.length >= this.most) {
      this.problem.textContent = `A zone has at most ${this.most} corners.`;
      this.dragged = null;
      return;
    }
    this.corners.splice(index, 0, corner);
    this.rebuild();
    this.on.say(`Corner ${index + 1} set, ${place(corner)}`);
  }

  close() {
    this.open = false;
    this.rebuild();
    this.on.say("The zone is closed");
  }

  insert() {
    const index = this.selected;
    const [one, next] = [this.corners[index], this.corners[(index + 1) % this.corners.length]];
    this.put(index + 1, [within((one[0] + next[0]) / 2), within((one[1] + next[1]) / 2)]);
    this.focusCorner(index + 1);
  }

  removeCorner() {
    const index = this.selected ?? this.corners.length - 1;
    if (index < 0 || (!this.open && this.corners.length <= 3)) return;
    this.corners.splice(index, 1);
    this.selected = null;
    this.rebuild();
    this.on.say(`Corner removed, ${this.corners.length} left`);
    if (this.corners.length > 0) this.focusCorner(Math.min(index, this.corners.length - 1));
    else this.svg.focus({ preventScroll: true });
  }

  key(event) {
    const { key, shiftKey } = event;
    const step = shiftKey ? FINE : STEP;
    if (key in ARROWS) {
      const [dx, dy] = ARROWS[key];
      const [x, y] = this.selected === null ? (this.cross ?? [0.5, 0.5]) : this.corners[this.selected];
      const moved = [within(x + dx * step), within(y + dy * step)];
      if (this.selected === null) this.cross = moved;
      else this.corners[this.selected] = moved;
      this.place();
    } else if ((key === "Enter" || key === " ") && this.selected === null && this.open) {
      this.cross ??= [0.5, 0.5];
      this.put(this.corners.length, this.cross);
    } else if (key === "Delete" || key === "Backspace") this.removeCorner();
    else if ((key === "+" || key === "Insert") && this.selected !== null && this.corners.length > 1) this.insert();
    else if (key === "Escape") this.end(true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  tell() {
    const at = this.selected === null ? this.cross : this.corners[this.selected];
    if (at !== null) this.on.say(place(at));
  }

  save() {
    this.problem.textContent = "";
    if (this.corners.length < 3) {
      this.problem.textContent = `A zone has three corners or more; this one has ${this.corners.length}.`;
      return;
    }
    this.waiting = this.name.value;
    const above = this.above.value === "" ? null : Number(this.above.value) / 100;
    this.on.send({ type: "zone", was: this.was, name: this.name.value, points: this.corners, above });
  }

  // The server's zones have changed.
  told(zones) {
    if (this.tile !== null && this.waiting !== null && zones.some(({ name }) => name === this.waiting)) {
      this.on.say(`Zone ${this.waiting} saved`);
      this.end(true);
    }
  }

  // Whether what was refused was the zone that is being saved.
  refused(text) {
    if (this.tile === null || this.waiting === null) return false;
    this.waiting = null;
    this.problem.textContent = text;
    return true;
  }

  end(tells) {
    if (this.tile === null) return;
    const tile = this.tile;
    this.tile = null;
    tile.edit(null);
    tile.layer.hidden = null;
    tile.layer.onresize = () => {};
    tile.layer.draw();
    if (tells) this.on.ended();
  }
}
