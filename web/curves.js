/** Loss curves on a logarithmic scale, one line for each term. */

import { el, short, svg } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [340, 130, 38, 16, 6, 6];
const COLOURS = { erase: "#e5484d", keep: "#30a46c", uncond: "#3e8eed", early: "#d98c00" };
const MORE = ["#9b5de5", "#12a594", "#d6409f", "#8d8d8d"];
const MOST_POINTS = 400; //: of one line; longer lines draw means of neighbours

/** Names of the terms in some points, in the order of appearance. */
export function terms(points) {
  return [...new Set(points.flatMap((point) => Object.keys(point)))].filter((name) => name !== "step");
}

/** The colour of a term, which is the `number`th one. */
export function colour(name, number) {
  return COLOURS[name] ?? MORE[number % MORE.length];
}

/** The figure with its legend. `steps` is the length of the axis. */
export function curves(points, steps) {
  const names = terms(points);
  const positive = points.flatMap((p) => names.map((n) => p[n])).filter((v) => typeof v === "number" && v > 0 && Number.isFinite(v));
  const [low, high] = decades(positive);
  const last = Math.max(1, (steps || points.length) - 1);
  const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * Math.min(step, last)) / last;
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - Math.log10(value))) / (high - low);
  const figure = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "trace-curves", role: "img", "aria-label": description(points, names) },
    ...powerLines(low, high, y),
    ...stepLabels(last, x),
    ...names.flatMap((name, i) => line(points, name, colour(name, i), x, y)),
  );
  return el("div", {}, figure, legend(points, names));
}

/** The exponents of the powers of ten around some values. */
function decades(values) {
  if (!values.length) return [-3, 0];
  const logs = values.map(Math.log10);
  const low = Math.floor(Math.min(...logs) + 1e-9);
  return [low, Math.max(low + 1, Math.ceil(Math.max(...logs) - 1e-9))];
}

/** Lines and labels at the powers of ten. */
function powerLines(low, high, y) {
  const every = Math.ceil((high - low) / 4);
  const out = [];
  for (let power = low; power <= high; power += every) {
    const at = y(10 ** power);
    out.push(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at, class: "trace-grid" }));
    out.push(svg("text", { x: LEFT - 4, y: at + 3, "text-anchor": "end" }, tenTo(power)));
  }
  return out;
}

function tenTo(power) {
  return power >= -3 && power <= 3 ? String(Number((10 ** power).toPrecision(1))) : `1e${power}`;
}

function stepLabels(last, x) {
  const anchors = ["start", "middle", "end"];
  return [...new Set([0, Math.round(last / 2), last])].map((step, i, all) =>
    svg("text", { x: x(step), y: HEIGHT - 3, "text-anchor": all.length < 3 && i ? "end" : anchors[i] }, String(step + 1)),
  );
}

/** A term's line with a dot at its end. A value without a logarithm interrupts the line. */
function line(points, name, stroke, x, y) {
  const group = Math.ceil(points.length / MOST_POINTS);
  const shown = [];
  for (let i = 0; i < points.length; i += group) {
    const part = points.slice(i, i + group).filter((p) => typeof p[name] === "number" && p[name] > 0 && Number.isFinite(p[name]));
    const mean = (of) => part.reduce((sum, p) => sum + of(p), 0) / part.length;
    shown.push(part.length ? [x(mean((p) => p.step)), y(mean((p) => p[name]))] : null);
  }
  const drawn = shown.filter(Boolean);
  if (!drawn.length) return [];
  const [endX, endY] = drawn.at(-1);
  const d = shown.map((at, i) => at && `${i && shown[i - 1] ? "L" : "M"}${at[0].toFixed(1)} ${at[1].toFixed(1)}`).filter(Boolean).join("");
  return [svg("path", { d, stroke, class: "trace-line" }), svg("circle", { cx: endX, cy: endY, r: 2.2, fill: stroke })];
}

function legend(points, names) {
  const last = points.at(-1) ?? {};
  return el("div", { class: "trace-legend" }, ...names.map((name, i) =>
    el("span", {}, el("i", { style: { background: colour(name, i) } }), `${name} `, el("b", {}, short(last[name]))),
  ));
}

/** The figure in words, for screen readers. */
function description(points, names) {
  const ends = names.map((name) => `${name} from ${short(points[0]?.[name])} to ${short(points.at(-1)?.[name])}`);
  return `Losses over ${points.length} steps: ${ends.join(", ")}`;
}
