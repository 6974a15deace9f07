/** What ComfyUI's own parts of the page make of our nodes: its text preview, and its fold of rarely used widgets. */

import { everyNode } from "./graphs.js";

const PREVIEW = "PreviewAny";
const MODE = "preview_mode"; //: plain text or Markdown; no workflow keeps it, older pages have none, and the classic design heeds it not
const REPORT = "report";

/** Show the reports that run into text previews as Markdown. */
export function showReports(graph) {
  for (const [, node] of everyNode(graph)) {
    if (node.type === PREVIEW) asMarkdown(node, node.getInputNode?.(0), node.getInputLink?.(0)?.origin_slot);
  }
}

/** The same for one that is connected to a node of ours by hand. */
export function showReportsOf(node) {
  const before = node.onConnectionsChange;
  node.onConnectionsChange = function (type, slot, connected, link, ...more) {
    const target = connected && type === LiteGraph.OUTPUT ? node.graph?.getNodeById(link?.target_id) : undefined;
    if (target?.type === PREVIEW) asMarkdown(target, node, slot);
    return before?.call(this, type, slot, connected, link, ...more);
  };
}

function asMarkdown(preview, source, slot) {
  const mode = LiteGraph.vueNodesMode && preview.widgets?.find((widget) => widget.name === MODE);
  if (mode && String(source?.comfyClass).startsWith("TRACE_") && source.outputs?.[slot]?.name === REPORT) mode.value = true;
}

/**
 * Unfold the rarely used widgets of a node that came with a workflow, if one of them has another value than its default: what acts
 * is to be seen. One that was folded or unfolded by hand stays so.
 */
export function unfold(node) {
  if (node.showAdvanced !== undefined) return;
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  for (const [name, [choices, options = {}]] of Object.entries({ ...required, ...optional })) {
    const usual = options.default ?? (Array.isArray(choices) ? choices[0] : undefined);
    const value = node.widgets?.find((widget) => widget.name === name)?.value;
    if (options.advanced && value !== undefined && value !== usual) node.showAdvanced = true;
  }
}
