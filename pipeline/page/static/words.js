// Words that need a sentence, which is there for the pointer, the keyboard and screen readers.

import { element } from "./element.js";

const SENTENCES = {
  age: "How old a picture is when it is shown: from the moment in which it was captured to that in which it was written to the outputs. "
    + "Half of the last 600 were younger than p50, and 99 of 100 younger than p99.",
  dropped: "Frames that were read and not shown. “newer”: the network was busy, and a newer frame took its place, which keeps live pictures "
    + "young. “corrupt”: it arrived damaged. “stopped”: the run ended first.",
  drift: "How far the pictures are from those that the bundle was verified on, by their brightness and texture. Above the limit they are unlike "
    + "all of them, and nobody has checked the masks of such pictures.",
  agreement: "Now and then a frame is also computed by the network as it was trained, in full precision. 1 means that both masks are the same "
    + "(intersection over union).",
};
let number = 0;

// The word as a button whose sentence shows while it is pointed at or has the focus.
export function term(word, text) {
  number += 1;
  const tip = element("span", { className: "tip", id: `tip-${number}`, role: "tooltip", textContent: SENTENCES[word] });
  const button = element("button", { type: "button", className: "term", textContent: text });
  button.setAttribute("aria-describedby", tip.id);
  const root = element("span", { className: "explained" }, button, tip);
  const quiet = (is) => root.classList.toggle("quiet", is);
  button.addEventListener("click", () => quiet(false));
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || root.classList.contains("quiet")) return;
    quiet(true);
    event.stopPropagation();
  });
  for (const kind of ["pointerleave", "focusout"]) root.addEventListener(kind, () => quiet(false));
  return root;
}
