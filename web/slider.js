/** Two pictures on top of each other and a divider between them. */

import { el } from "./dom.js";

const URLS = { type: "temp", subfolder: "" };

export class Slider {
  /** `view(entry)`: the address of a picture that an output names. */
  constructor(view) {
    this.view = view;
    this.before = el("img", { alt: "", draggable: "false" });
    this.after = el("img", { alt: "", draggable: "false", class: "trace-after" });
    // A range input brings dragging, focus, arrow keys and screen readers along.
    this.range = el("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Divider between before and after" });
    this.range.addEventListener("input", () => this.#move());
    this.element = el(
      "div",
      { class: "trace-slider" },
      this.before,
      this.after,
      el("div", { class: "trace-divider" }),
      el("span", { class: "trace-tag trace-tag-before" }, "before"),
      el("span", { class: "trace-tag trace-tag-after" }, "after"),
      this.range,
    );
    this.#move();
  }

  /** Show another pair. The divider stays where it is. */
  update(before, after, label) {
    for (const [img, entry, name] of [[this.before, before, "before"], [this.after, after, "after"]]) {
      const address = this.view({ ...URLS, ...entry });
      if (img.getAttribute("src") !== address) img.src = address;
      img.alt = `${label}, ${name}`;
    }
  }

  #move() {
    this.element.style.setProperty("--trace-at", `${this.range.value}%`);
    this.range.setAttribute("aria-valuetext", `${this.range.value} % before, ${100 - this.range.value} % after`);
  }
}
