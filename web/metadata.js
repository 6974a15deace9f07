/** The part of a panel that shows an erasure's metadata: concepts, method, base model, window, licence and notes. */

import { el, setText, short, show } from "./dom.js";

const MOST_NAMES = 12; //: of concepts; of the others the number is shown

export class MetadataView {
  constructor() {
    this.line = el("span");
    this.list = el("dl");
    this.element = el("details", { class: "trace-fold trace-metadata" }, el("summary", {}, this.line), this.list);
    show(this.element, false);
  }

  update(info) {
    show(this.element, Boolean(info));
    if (!info) return;
    const found = facts(info);
    setText(this.line, found[0].join(" "));
    this.line.title = this.line.textContent;
    this.list.replaceChildren(...found.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }
}

/** Rows `[name, text]` of what is known. Every value is checked, because a file may hold anything under these keys. */
export function facts(info) {
  const base = info["trace.base"];
  const found = [
    ["warning", text(info.rounding)],
    ["erases", concepts(info["trace.concepts"])],
    ["method", text(info["trace.method"])],
    ["base", base && typeof base === "object" ? [base.kind, base.hash].map(text).filter(Boolean).join(", ") : text(base)],
    ["window", windowText(info["trace.window"])],
    ["keeps", firstOf(info["trace.keep"])],
    ["size", Number.isFinite(info.modules) ? `${info.modules} layers, rank ${text(info.rank)}` : ""],
    ["licence", text(info["modelspec.license"])],
    ["notes", text(info["modelspec.description"])],
  ].filter(([, value]) => value);
  return found.length ? found : [["no metadata", "this LoRA was not written by TRACE"]];
}

function text(value) {
  if (value === null || value === undefined) return "";
  return (typeof value === "object" ? JSON.stringify(value) : String(value)).slice(0, 2000);
}

function concepts(list) {
  if (!Array.isArray(list)) return text(list);
  const names = list.slice(0, MOST_NAMES).map((entry) => {
    const [target, anchor, weight, strength] = Array.isArray(entry) ? entry : [entry];
    const isOther = (value) => Number.isFinite(value) && value !== 1;
    return [
      text(target),
      anchor ? ` → ${text(anchor)}` : "",
      isOther(strength) ? ` @ ${short(strength)}` : "",
      isOther(weight) ? ` (× ${short(weight)})` : "",
    ].join("");
  });
  return names.join(", ") + (list.length > MOST_NAMES ? ` and ${list.length - MOST_NAMES} more` : "");
}

function windowText(window) {
  if (!Array.isArray(window) || !window.every((v) => Number.isFinite(v))) return text(window);
  return window[0] === 0 && window[1] === 1 ? "the whole sampling" : `${short(window[0])} – ${short(window[1])} of the sampling`;
}

/** The first names of a list, and the number of the others. */
function firstOf(list) {
  if (!Array.isArray(list) || !list.length) return "";
  return list.length > 4 ? `${list.slice(0, 3).map(text).join(", ")} and ${list.length - 3} more` : list.map(text).join(", ");
}
