/** The part of a panel that shows pictures before and after: one pair under a slider, or the whole grid. */

import { el, setText, show } from "./dom.js";
import { Slider } from "./slider.js";

export class CompareView {
  constructor(view) {
    this.view = view;
    this.slider = new Slider(view);
    this.choice = el("select", { "aria-label": "Prompt and seed" });
    this.choice.addEventListener("change", () => this.#draw());
    this.grid = el("a", { class: "trace-sheet", target: "_blank", rel: "noopener", title: "Open in a new tab" });
    this.toggle = el("button", { type: "button", class: "trace-button", "aria-pressed": "false" }, "show grid");
    this.toggle.addEventListener("click", () => this.#showGrid(this.grid.hidden));
    const stepButton = (by, text, label) =>
      el("button", { type: "button", class: "trace-button", "aria-label": label, on: { click: () => this.#step(by) } }, text);
    this.bar = el("div", { class: "trace-bar" }, stepButton(-1, "‹", "Previous pair"), this.choice, stepButton(1, "›", "Next pair"), this.toggle);
    this.element = el("section", { class: "trace-compare" }, this.bar, this.slider.element, this.grid);
    this.pairs = [];
    this.update(undefined);
  }

  /** `output`: the node's output, with `trace_pairs` and the grid in `images`. */
  update(output) {
    const pairs = output?.trace_pairs ?? [];
    show(this.element, pairs.length > 0);
    if (pairs === this.pairs || !pairs.length) return;
    this.pairs = pairs;
    const chosen = Math.min(pairs.length - 1, Math.max(0, this.choice.selectedIndex));
    this.choice.replaceChildren(...pairs.map((pair, i) => el("option", { value: i }, `${pair.prompt} · seed ${pair.seed}`)));
    this.choice.selectedIndex = chosen;
    this.#setGrid(output.images?.[0]);
    this.#showGrid(!this.grid.hidden && this.grid.childElementCount > 0 && this.toggle.getAttribute("aria-pressed") === "true");
    this.#draw();
  }

  #setGrid(entry) {
    show(this.toggle, Boolean(entry));
    if (!entry) return;
    this.grid.href = this.view(entry);
    this.grid.replaceChildren(el("img", { src: this.view(entry), alt: "All pictures, before and after" }));
  }

  #showGrid(visible) {
    show(this.grid, visible);
    show(this.slider.element, !visible);
    this.toggle.setAttribute("aria-pressed", String(visible));
    setText(this.toggle, visible ? "show slider" : "show grid");
  }

  #step(by) {
    this.choice.selectedIndex = (this.choice.selectedIndex + by + this.pairs.length) % this.pairs.length;
    this.#showGrid(false);
    this.#draw();
  }

  #draw() {
    const pair = this.pairs[Math.max(0, this.choice.selectedIndex)];
    this.choice.title = pair.prompt;
    this.slider.update(pair.before, pair.after, `${pair.prompt}, seed ${pair.seed}`);
  }
}
