/** Draws the Markdown of the reports: headings, paragraphs, tables, lists, quotes, bold and code. */

import { el } from "./dom.js";

const INLINE = /\*\*(.+?)\*\*|`([^`]+)`|\\([<\]\\])/g; // the last one is a sign that a report escapes, so that no text is read as HTML or a link

/** A report as one element. */
export function render(text) {
  const lines = String(text ?? "").split(/\r?\n/);
  const out = el("div", { class: "trace-markdown" });
  for (let at = 0; at < lines.length; ) {
    const block = BLOCKS.find(({ starts }) => starts(lines[at], lines[at + 1]));
    let end = at + 1;
    while (block.many && end < lines.length && block.goesOn(lines[end])) end++;
    out.append(...[block.make(lines.slice(at, end))].flat());
    at = end;
  }
  return out;
}

/** The line of a folded report: its first bold text with what follows, else its heading. */
export function verdict(text) {
  const source = String(text ?? "");
  const found = /\*\*(.+?)\*\*([^\n]*)/.exec(source);
  const first = source.split("\n").find((line) => line.trim()) ?? "";
  return unescaped((found ? found[1] + found[2] : first.replace(/^#+\s*/, "")).replace(/\*\*|`/g, "")).trim();
}

const isTable = (line) => /^\s*\|/.test(line ?? "");
const isItem = (line) => /^\s*([-*]|\d+\.)\s+/.test(line ?? "");
const isQuote = (line) => /^\s*>/.test(line ?? "");
const isHeading = (line) => /^#{1,6}\s/.test(line ?? "");
const isEmpty = (line) => !(line ?? "").trim();
const isPlain = (line) => ![isTable, isItem, isQuote, isHeading, isEmpty].some((is) => is(line));

const BLOCKS = [
  { starts: isEmpty, make: () => [] },
  { starts: isHeading, make: ([line]) => heading(line) },
  { starts: isTable, many: true, goesOn: isTable, make: table },
  { starts: isItem, many: true, goesOn: isItem, make: list },
  { starts: isQuote, many: true, goesOn: isQuote, make: (lines) => el("blockquote", {}, ...inline(lines.map((l) => l.replace(/^\s*>\s?/, "")).join(" "))) },
  { starts: () => true, many: true, goesOn: isPlain, make: (lines) => el("p", {}, ...inline(lines.join(" "))) },
];

function heading(line) {
  const [, marks, text] = /^(#{1,6})\s+(.*)$/.exec(line) ?? [null, "#", line];
  return el(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(text)); // the page has its own h1 and h2
}

function list(lines) {
  const ordered = /^\s*\d/.test(lines[0]);
  return el(ordered ? "ol" : "ul", {}, ...lines.map((line) => el("li", {}, ...inline(line.replace(/^\s*([-*]|\d+\.)\s+/, "")))));
}

function table(lines) {
  const rows = lines.map(cells);
  const ruled = rows.length > 1 && rows[1].every((cell) => /^:?-+:?$/.test(cell));
  const body = rows.slice(ruled ? 2 : 0).map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, ...inline(cell)))));
  const head = ruled ? el("thead", {}, el("tr", {}, ...rows[0].map((cell) => el("th", {}, ...inline(cell))))) : null;
  return el("div", { class: "trace-table" }, el("table", {}, head, el("tbody", {}, ...body)));
}

/** The cells of a row; `\|` is a bar within one. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.replace(/\\\|/g, "|").trim());
}

const unescaped = (text) => text.replace(/\\([<\]\\])/g, "$1");

function inline(text) {
  const out = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    const [, strong, code, sign] = match;
    out.push(text.slice(at, match.index), sign ?? (strong === undefined ? el("code", {}, unescaped(code)) : el("strong", {}, ...inline(strong))));
    at = match.index + match[0].length;
  }
  return [...out, text.slice(at)].filter((part) => part !== "");
}
