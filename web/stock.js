/** Two stock parts of the page that our nodes adjust: the text preview, and the fold of rarely used widgets. */

import { everyNode } from "./graphs.js";

const PREVIEW = "PreviewAny";
const MODE = "preview_mode"; //: plain text or Markdown; workflows do not keep it, older pages lack it, and the classic design ignores it
const REPORT = "report";

/** Show the reports that run into text previews as Markdown. */
export function showReports(graph) {
  for (const [, node] of everyNode(graph)) {
    if (node.type === PREVIEW) asMarkdown(node, node.getInputNode?.(0), node.getInputLink?.(0)?.origin_slot);
  }
}

/** Show the reports of a node as Markdown in text previews that the user connects. */
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
 * Unfold the rarely used widgets of a node that came with a workflow, if one of them has another value than its default, so that
 * the user sees what acts. A node that the user folded or unfolded stays so.
 */
export function unfold(node) {
  if (node.showAdvanced !== undefined) return;
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  for (const [name, [choices, options = {}]] of Object.entries({ ...required, ...optional })) {
    const standard = options.default ?? (Array.isArray(choices) ? choices[0] : undefined);
    const value = node.widgets?.find((widget) => widget.name === name)?.value;
    if (options.advanced && value !== undefined && value !== standard) node.showAdvanced = true;
  }
}
