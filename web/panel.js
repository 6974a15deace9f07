/** The panel of one node, a DOM widget below its other widgets. */

import { CompareView } from "./compare.js";
import { el } from "./dom.js";
import { MetadataView } from "./metadata.js";
import { ReportView } from "./report.js";
import { training } from "./runs.js";
import { TrainingView } from "./training.js";

const WIDGET = "trace_panel";
const MARGIN = 10;

export class Panel {
  /**
   * `view(entry)`: the address of a picture; `canvas()`: ComfyUI's canvas, which gets the mouse wheel and the middle button;
   * `trains`: whether the node trains, so that the panel is never empty; `laidOut()`: whether the page lays nodes out as HTML, its
   * new design, so that they grow by themselves.
   */
  constructor(node, { view, canvas, trains, laidOut }) {
    this.node = node;
    this.laidOut = laidOut;
    this.height = 0;
    this.training = trains ? new TrainingView(view) : null;
    this.compare = new CompareView(view);
    this.metadata = new MetadataView();
    this.report = new ReportView();
    const parts = [this.training, this.compare, this.metadata, this.report].filter(Boolean);
    this.content = el("div", { class: "trace-content" }, ...parts.map((part) => part.element));
    this.element = el("div", { class: "trace-panel" }, this.content);
    this.end = new AbortController();
    passOn(this.element, canvas, this.end.signal);
    this.widget = this.#addWidget();
    this.observer = new ResizeObserver(() => this.#fit());
    this.observer.observe(this.content);
    if (trains) this.#watchWindow();
    this.update(undefined);
  }

  /** Draw a run, as :class:`Runs` keeps it, with the next frame; of several before it the last one counts. */
  update(run) {
    this.run = run;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.#draw(this.run);
    });
  }

  /** Whether the panel shows what ComfyUI would draw on the node itself. */
  replacesPictures() {
    return Boolean(this.training || this.run?.output?.trace_pairs);
  }

  destroy() {
    this.end.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
  }

  #draw(run) {
    const output = run?.output;
    const trained = this.training && training(run);
    this.training?.update(trained, this.#windowAsked());
    this.compare.update(output);
    this.metadata.update(output?.trace_metadata?.[0]);
    // The report of the run before says nothing of one that was cancelled
    const earlier = trained && run.live && run.live.prompt_id !== run.prompt;
    this.report.update(earlier ? undefined : output?.trace_report?.[0]);
    this.#fit();
  }

  #addWidget() {
    const height = () => this.height + 2 * MARGIN;
    const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height, getValue: () => "" };
    const widget = this.node.addDOMWidget(WIDGET, WIDGET, this.element, options);
    widget.serialize = false; // else the workflow's list of widget values would grow by one
    return widget;
  }

  /** Make room for the content: the node grows if it must, and gives back what a part that was closed had taken. */
  #fit() {
    const height = Math.ceil(this.content.offsetHeight);
    if (!height || height === this.height) return; // 0: not on the page now
    const more = height - this.height;
    this.height = height;
    const [width, now] = this.node.size;
    const least = this.laidOut() ? 0 : this.node.computeSize()[1];
    const wanted = Math.max(least, now + Math.min(0, more));
    if (wanted !== now) this.node.setSize([width, wanted]);
    this.node.graph?.setDirtyCanvas(true, true);
  }

  /** The window that the widgets ask for. */
  #windowAsked() {
    const value = (name) => this.node.widgets?.find((widget) => widget.name === name)?.value;
    return value("window") === "custom" ? [Number(value("window_start")), Number(value("window_end"))] : undefined;
  }

  #watchWindow() {
    for (const widget of this.node.widgets.filter(({ name }) => /^window(_start|_end)?$/.test(name))) {
      const before = widget.callback;
      const panel = this;
      widget.callback = function (...given) {
        const result = before?.apply(this, given);
        panel.update(panel.run);
        return result;
      };
    }
  }
}

/** The wheel zooms and the middle button moves the canvas over a panel too, unless there is something to scroll. */
function passOn(element, canvas, signal) {
  const middle = (handler) => (event) => (event.button === 1 || event.buttons & 4) && canvas()?.[handler]?.(event);
  element.addEventListener("wheel", (event) => {
    const body = event.target.closest?.(".trace-report-body");
    if (!event.ctrlKey && body && body.scrollHeight > body.clientHeight) return;
    event.preventDefault();
    canvas()?.processMouseWheel?.(event);
  }, { signal, passive: false });
  element.addEventListener("pointerdown", middle("processMouseDown"), { signal });
  element.addEventListener("pointermove", middle("processMouseMove"), { signal });
  element.addEventListener("pointerup", middle("processMouseUp"), { signal });
}
