/** The extension: hears what nodes say while they run, and shows it on them. All other modules only define things. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode, movedNode } from "./graphs.js";
import { Panel } from "./panel.js";
import { Runs } from "./runs.js";
import { ended, history, lastStates, originOf, pictureUrl } from "./server.js";
import { showReports, showReportsOf, unfold } from "./stock.js";

const TRAINS = "TRACE_LateStageFinetune";
const PICTURED = [TRAINS, "TRACE_CompareErasure"]; //: whose panel shows the pictures that ComfyUI would draw below it
const SHOWN = ["trace_report", "trace_losses", "trace_pairs", "trace_metadata"];
const SILENCE = 3000; //: ms without an event after which a running node is asked for

const runs = new Runs();
const panels = new WeakMap();
const restored = new Set();
let soon; //: a timer, while there are new nodes to draw

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
    setInterval(askForSilentOnes, SILENCE);
  },

  nodeCreated(node) {
    if (!isOurs(node)) return;
    if (PICTURED.includes(node.comfyClass)) node.hideOutputImages = true; // of the page's new design, which reads it early on
    showReportsOf(node);
    if (node.comfyClass === TRAINS) panelOf(node);
    soon ??= setTimeout(drawAll); // a node that moves into a subgraph is made anew there
  },

  loadedGraphNode(node) {
    if (isOurs(node)) unfold(node);
  },

  afterConfigureGraph() {
    drawAll();
    showReports(app.graph);
    restore(app.graph.id); // not awaited: the page need not wait for it
  },
});

async function onProgress(event) {
  draw(runs.hear(await originOf(event.prompt_id), event));
}

async function onExecuted({ node, display_node, output, prompt_id }) {
  if (!output || !SHOWN.some((key) => key in output)) return;
  draw(runs.executed(await originOf(prompt_id), display_node ?? node, output, prompt_id));
}

/** Nodes that came from the cache said nothing; what they show is in the history, which is written a moment later. */
async function onSuccess(promptId) {
  const run = await ended(promptId);
  for (const [id, output] of Object.entries(run.outputs)) {
    const heard = runs.get(run.workflow, id)?.prompt === promptId;
    if (!heard && SHOWN.some((key) => key in output)) draw(runs.executed(run, id, output, promptId));
  }
}

/** A run that ended early in a node, maybe before that node said anything itself. */
async function onEnd({ node_id, prompt_id }, state, error) {
  const origin = await originOf(prompt_id);
  const live = runs.get(origin.workflow, node_id)?.live;
  const known = live?.prompt_id === prompt_id ? live : { phase: "", points: [], previews: [] };
  draw(runs.hear(origin, { ...known, node: node_id, prompt_id, state, error: known.error ?? error?.trim().slice(0, 500) }));
}

/** After a reload of the page: what the server remembers of this workflow's runs, in the order in which they ended. */
async function restore(workflow) {
  if (restored.has(workflow)) return;
  restored.add(workflow);
  const [states, past] = await Promise.all([lastStates(), history()]);
  const statesOf = (promptId) => (states ?? []).filter((state) => state.prompt_id === promptId);
  for (const run of past.filter((entry) => entry.workflow === workflow)) {
    for (const state of statesOf(run.prompt_id)) runs.hear(run, state, true);
    for (const [id, output] of Object.entries(run.outputs)) {
      if (SHOWN.some((key) => key in output)) runs.executed(run, id, output, run.prompt_id);
    }
  }
  const known = new Set(past.map((entry) => entry.prompt_id));
  for (const state of (states ?? []).filter((entry) => !known.has(entry.prompt_id))) {
    runs.hear(await originOf(state.prompt_id), state, true);
  }
  drawAll();
}

/** A node that says nothing for a while may be slow, may run for another page, or its server is gone. */
async function askForSilentOnes() {
  const silent = runs.running().filter((run) => Date.now() - run.heard > SILENCE);
  const states = silent.length ? await lastStates() : null;
  if (!states) return;
  for (const run of silent) {
    const state = states.find((entry) => String(entry.node) === run.id && entry.prompt_id === run.live.prompt_id);
    const gone = { ...run.live, state: "failed", error: "ComfyUI was started anew while this node ran." };
    draw(runs.hear(run, state ?? gone, true));
  }
}

function draw(run) {
  if (!run || run.workflow !== app.graph?.id) return;
  const exact = findNode(app.graph, run.id);
  const node = isOurs(exact) ? exact : movedNode(app.graph, run.id, run.type);
  if (node && (panels.has(node) || SHOWN.some((key) => key in (run.output ?? {})))) panelOf(node).update(run);
}

function drawAll() {
  clearTimeout(soon);
  soon = undefined;
  if (app.graph) runs.of(app.graph.id).forEach(draw);
}

/** The node's panel; it is made when there is first something to show. */
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

/** The grid of a comparison and the previews of a training are in the panel; ComfyUI would draw them once more below it. */
function hideStockPreview(node, panel) {
  const before = node.onDrawBackground;
  node.onDrawBackground = function (...given) {
    return panel.replacesPictures() ? undefined : before?.apply(this, given);
  };
}
