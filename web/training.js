/** The part of a panel that follows a training: state, progress, loss curves, window and previews. */

import { WindowAxis } from "./axis.js";
import { curves } from "./curves.js";
import { duration, el, setText, short, show } from "./dom.js";

const STATES = { running: "running", done: "done", cancelled: "cancelled", failed: "failed" };

export class TrainingView {
  constructor(view) {
    this.badge = el("span", { class: "trace-badge" });
    this.phase = el("span", { class: "trace-phase" });
    this.speed = el("span", { class: "trace-speed" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.error = el("p", { class: "trace-error" });
    this.curves = el("div");
    this.axis = new WindowAxis();
    this.previews = new Previews(view);
    this.head = el("div", { class: "trace-head", role: "status" }, this.badge, this.phase, this.speed);
    this.element = el("section", { class: "trace-training" }, this.head, this.bar, this.error, this.curves, this.axis.element,
      this.previews.element);
    this.update(undefined, undefined);
  }

  /** `live`: what `runs.training` returns. `given`: the window that the widgets ask for, shown until the run has one. */
  update(live, given) {
    this.axis.update(live?.window ?? given);
    for (const part of [this.head, this.bar]) show(part, Boolean(live));
    show(this.error, Boolean(live?.error));
    show(this.curves, Boolean(live?.points.length));
    this.previews.update(live?.previews ?? []);
    if (!live) return;
    this.#progress(live);
    setText(this.error, live.error ?? "");
    if (live.points.length) this.curves.replaceChildren(curves(live.points, live.steps));
  }

  #progress(live) {
    const state = STATES[live.state] ?? "running";
    this.element.dataset.state = state;
    setText(this.badge, state);
    const steps = live.step && live.steps ? `step ${live.step} of ${live.steps}` : "";
    const within = live.total > 1 ? `${live.phase} ${live.done}/${live.total}` : live.phase ?? "";
    setText(this.phase, state === "done" ? steps : [live.phase === "train" ? "" : within, steps].filter(Boolean).join(" · "));
    const speed = live.steps_per_second ? `${short(live.steps_per_second)} it/s` : "";
    const left = state === "running" && live.eta_seconds != null ? `${duration(live.eta_seconds)} left` : "";
    setText(this.speed, [speed, left].filter(Boolean).join(" · "));
    this.bar.value = state === "done" ? 1 : share(live);
  }
}

/** The share that is done: of the steps, or of the phase before the first step. */
function share({ step, steps, done, total }) {
  const [part, whole] = step ? [step, steps] : [done, total];
  return whole ? Math.min(1, part / whole) : 0;
}

/** Pictures of the same prompts and seed: of the base model, which is step 0, and of a later step. */
class Previews {
  constructor(view) {
    this.view = view;
    this.rows = [0, 1].map(() => ({ text: el("figcaption"), img: el("img", { draggable: "false" }) }));
    this.choice = el("input", { type: "range", min: 1, step: 1, "aria-label": "Step of the preview" });
    this.choice.addEventListener("input", () => this.#draw());
    this.prompts = el("div", { class: "trace-prompts" });
    this.list = [];
    const figures = this.rows.map(({ text, img }) => el("figure", {}, text, img));
    this.element = el("div", { class: "trace-previews" }, this.prompts, ...figures, this.choice);
  }

  update(list) {
    const followed = Number(this.choice.value) >= this.list.length - 1;
    this.list = list;
    show(this.element, list.length > 0);
    if (!list.length) return;
    this.choice.max = Math.max(1, list.length - 1);
    if (followed) this.choice.value = list.length - 1;
    show(this.choice, list.length > 2);
    this.#draw();
  }

  #draw() {
    const chosen = Math.min(this.list.length - 1, Number(this.choice.value));
    const shown = this.list.length > 1 ? [this.list[0], this.list[chosen]] : [this.list[0]];
    this.prompts.replaceChildren(...(shown[0].prompts ?? []).map((prompt) => el("span", { title: prompt }, prompt)));
    this.rows.forEach(({ text, img }, i) => {
      show(img.parentElement, i < shown.length);
      if (i >= shown.length) return;
      setText(text, shown[i].step === 0 ? "base" : `step ${shown[i].step}`);
      const address = this.view(shown[i]);
      if (img.getAttribute("src") !== address) img.src = address;
      img.alt = `Preview at step ${shown[i].step}: ${(shown[i].prompts ?? []).join("; ")}`;
    });
  }
}
