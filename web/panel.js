/** The panel of one node: a DOM widget below the node's other widgets. */

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
   * `view(entry)`: the address of a picture.
   * `canvas()`: ComfyUI's canvas, which gets the mouse wheel and the middle button.
   * `trains`: whether the node trains. The panel of such a node is never empty.
   * `laidOut()`: whether the page lays nodes out as HTML, its new design, so that nodes grow by themselves.
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
    passMouseToCanvas(this.element, canvas, this.end.signal);
    this.widget = this.#addWidget();
    this.observer = new ResizeObserver(() => this.#fit());
    this.observer.observe(this.content);
    if (trains) this.#watchWindow();
    this.update(undefined);
  }

  /** Draw a run of `Runs` with the next frame. Of several updates before the frame, the last one counts. */
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
    // A cancelled run has no report, and that of the run before would mislead
    const isOfEarlierRun = trained && run.live && run.live.prompt_id !== run.prompt;
    this.report.update(isOfEarlierRun ? undefined : output?.trace_report?.[0]);
    this.#fit();
  }

  #addWidget() {
    const height = () => this.height + 2 * MARGIN;
    const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height, getValue: () => "" };
    const widget = this.node.addDOMWidget(WIDGET, WIDGET, this.element, options);
    widget.serialize = false; // otherwise the workflow's list of widget values would grow by one
    return widget;
  }

  /** Make room for the content: the node grows if it must, and shrinks when a part is closed. */
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

  /** The window that the widgets ask for, if it is a custom one. */
  #windowAsked() {
    const value = (name) => this.node.widgets?.find((widget) => widget.name === name)?.value;
    return value("window") === "custom" ? [Number(value("window_start")), Number(value("window_end"))] : undefined;
  }

  /** Draw the window anew whenever one of its widgets changes. */
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

/** Over a panel too, the wheel zooms and the middle button moves the canvas. Only a long report takes the wheel to scroll. */
function passMouseToCanvas(element, canvas, signal) {
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
