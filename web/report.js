/** The part of a panel that holds a report. Folded, it shows the verdict in one line. */

import { el, setText, show } from "./dom.js";
import { render, verdict } from "./markdown.js";

export class ReportView {
  constructor() {
    this.line = el("span");
    this.body = el("div", { class: "trace-report-body", tabindex: "0" });
    this.element = el("details", { class: "trace-fold trace-report" }, el("summary", {}, this.line), this.body);
    this.text = undefined;
    show(this.element, false);
  }

  update(text) {
    show(this.element, Boolean(text));
    if (!text || text === this.text) return;
    this.text = text;
    setText(this.line, verdict(text));
    this.line.title = this.line.textContent;
    this.body.replaceChildren(render(text));
  }
}
