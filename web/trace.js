/** The extension: listens to running nodes and updates their panels. All other modules only define things. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode, movedNode } from "./graphs.js";
import { Panel } from "./panel.js";
import { Runs } from "./runs.js";
import { ended, history, lastStates, originOf, pictureUrl } from "./server.js";
import { showReports, showReportsOf, unfold } from "./stock.js";

const TRAINS = "TRACE_LateStageFinetune";
const PICTURED = [TRAINS, "TRACE_CompareErasure"]; //: their panels show the pictures that ComfyUI would draw too
const SHOWN_KEYS = ["trace_report", "trace_losses", "trace_pairs", "trace_metadata"];
const FORMER_NAMES = { TRACE_ClosedFormProjection: { policy: { trace: "projection" } } }; //: of widget values, in older workflows
const SILENCE = 3000; //: ms without an event, after which the page asks for a running node's state

const runs = new Runs();
const panels = new WeakMap();
const restored = new Set();
let drawTimer; //: runs while there are new nodes to draw

const laidOut = () => Boolean(window.LiteGraph?.vueNodesMode);
const isOurs = (node) => String(node?.comfyClass ?? "").startsWith("TRACE_");

app.registerExtension({
  name: "TRACE.panels",

  setup() {
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("./trace.css", import.meta.url).href }));
    api.addEventListener("trace.progress", ({ detail }) => onProgress(detail));
    api.addEventListener("executed", ({ detail }) => onExecuted(detail));
    api.addEventListener("execution_success", ({ detail }) => onSuccess(detail.prompt_id));
    api.addEventListener("execution_error", ({ detail }) => onEnd(detail, "failed", detail.exception_message));
    api.addEventListener("execution_interrupted", ({ detail }) => onEnd(detail, "cancelled"));
    setInterval(askForSilentNodes, SILENCE);
  },

  nodeCreated(node) {
    if (!isOurs(node)) return;
    if (PICTURED.includes(node.comfyClass)) node.hideOutputImages = true; // the page's new design reads this early
    showReportsOf(node);
    if (node.comfyClass === TRAINS) panelOf(node);
    drawTimer ??= setTimeout(drawAll); // a node that moves into a subgraph is made anew there
  },

  loadedGraphNode(node) {
    if (!isOurs(node)) return;
    renameValues(node);
    unfold(node);
  },

  afterConfigureGraph() {
    drawAll();
    showReports(app.graph);
    restore(app.graph.id); // not awaited: the page need not wait for it
  },
});

/** Give widget values of older workflows their present names. */
function renameValues(node) {
  for (const [name, names] of Object.entries(FORMER_NAMES[node.comfyClass] ?? {})) {
    const widget = node.widgets?.find((one) => one.name === name);
    if (widget?.value in names) widget.value = names[widget.value];
  }
}

async function onProgress(event) {
  draw(runs.hear(await originOf(event.prompt_id), event));
}

async function onExecuted({ node, display_node, output, prompt_id }) {
  if (!output || !SHOWN_KEYS.some((key) => key in output)) return;
  draw(runs.executed(await originOf(prompt_id), display_node ?? node, output, prompt_id));
}

/** Show cached nodes, which sent nothing. The history holds their output, and is written a moment later. */
async function onSuccess(promptId) {
  const run = await ended(promptId);
  for (const [id, output] of Object.entries(run.outputs)) {
    const heard = runs.get(run.workflow, id)?.prompt === promptId;
    if (!heard && SHOWN_KEYS.some((key) => key in output)) draw(runs.executed(run, id, output, promptId));
  }
}

/** Show a run that a node ended early, perhaps before that node sent anything. */
async function onEnd({ node_id, prompt_id }, state, error) {
  const origin = await originOf(prompt_id);
  const live = runs.get(origin.workflow, node_id)?.live;
  const known = live?.prompt_id === prompt_id ? live : { phase: "", points: [], previews: [] };
  draw(runs.hear(origin, { ...known, node: node_id, prompt_id, state, error: known.error ?? error?.trim().slice(0, 500) }));
}

/** After a reload of the page, show what the server remembers of this workflow's runs, in the order in which the runs ended. */
async function restore(workflow) {
  if (restored.has(workflow)) return;
  restored.add(workflow);
  const [states, past] = await Promise.all([lastStates(), history()]);
  const statesOf = (promptId) => (states ?? []).filter((state) => state.prompt_id === promptId);
  for (const run of past.filter((entry) => entry.workflow === workflow)) {
    for (const state of statesOf(run.prompt_id)) runs.hear(run, state, true);
    for (const [id, output] of Object.entries(run.outputs)) {
      if (SHOWN_KEYS.some((key) => key in output)) runs.executed(run, id, output, run.prompt_id);
    }
  }
  const known = new Set(past.map((entry) => entry.prompt_id));
  for (const state of (states ?? []).filter((entry) => !known.has(entry.prompt_id))) {
    runs.hear(await originOf(state.prompt_id), state, true);
  }
  drawAll();
}

/** Ask for nodes that sent nothing for a while: they may be slow, run for another page, or belong to a server that is gone. */
async function askForSilentNodes() {
  const silent = runs.running().filter((run) => Date.now() - run.heard > SILENCE);
  const states = silent.length ? await lastStates() : null;
  if (!states) return;
  for (const run of silent) {
    const state = states.find((entry) => String(entry.node) === run.id && entry.prompt_id === run.live.prompt_id);
    const gone = { ...run.live, state: "failed", error: "ComfyUI restarted while this node ran." };
    draw(runs.hear(run, state ?? gone, true));
  }
}

function draw(run) {
  if (!run || run.workflow !== app.graph?.id) return;
  const exact = findNode(app.graph, run.id);
  const node = isOurs(exact) ? exact : movedNode(app.graph, run.id, run.type);
  if (node && (panels.has(node) || SHOWN_KEYS.some((key) => key in (run.output ?? {})))) panelOf(node).update(run);
}

function drawAll() {
  clearTimeout(drawTimer);
  drawTimer = undefined;
  if (app.graph) runs.of(app.graph.id).forEach(draw);
}

/** The node's panel, made on the first call. */
function panelOf(node) {
  if (panels.has(node)) return panels.get(node);
  const panel = new Panel(node, { view: pictureUrl, canvas: () => app.canvas, trains: node.comfyClass === TRAINS, laidOut });
  panels.set(node, panel);
  hideStockPreview(node, panel);
  const before = node.onRemoved;
  node.onRemoved = function (...given) {
    panel.destroy();
    panels.delete(node);
    return before?.apply(this, given);
  };
  return panel;
}

/** Keep ComfyUI from drawing the pictures that the panel shows once more below it. */
function hideStockPreview(node, panel) {
  const before = node.onDrawBackground;
  node.onDrawBackground = function (...given) {
    return panel.replacesPictures() ? undefined : before?.apply(this, given);
  };
}
