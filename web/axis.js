/** The erasure's window on an axis of the sampling, from 0 (noise) to 1 (the finished picture). */

import { el, setText } from "./dom.js";

export class WindowAxis {
  constructor() {
    this.bar = el("div", { class: "trace-window-inside" });
    this.text = el("span", {});
    this.element = el(
      "div",
      { class: "trace-window" },
      el("div", { class: "trace-window-head" }, el("span", {}, "window of the erasure"), this.text),
      el("div", { class: "trace-window-track" }, this.bar),
      el("div", { class: "trace-window-ends" }, el("span", {}, "0  noise"), el("span", {}, "picture  1")),
    );
  }

  /** `window`: `[start, end]`, or nothing while no window is known. */
  update(window) {
    const known = Array.isArray(window) && window.length === 2 && window.every((v) => Number.isFinite(v));
    const [start, end] = known ? window.map((v) => Math.min(1, Math.max(0, v))) : [0, 0];
    this.bar.style.left = `${100 * start}%`;
    this.bar.style.width = `${100 * Math.max(0, end - start)}%`;
    setText(this.text, known ? `${start.toFixed(2)} – ${end.toFixed(2)}` : "auto");
  }
}
