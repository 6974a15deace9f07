/** Nodes by their execution ids: "5:3" is node 3 in the subgraph of node 5. */

/** Every node of a graph and its subgraphs, as `[execution id, node]`. A subgraph used twice gives its nodes twice. */
export function* everyNode(graph, prefix = "") {
  for (const node of graph?.nodes ?? []) {
    yield [`${prefix}${node.id}`, node];
    if (node.subgraph) yield* everyNode(node.subgraph, `${prefix}${node.id}:`);
  }
}

/** The node of an execution id, or undefined. */
export function findNode(graph, id) {
  const path = String(id).split(":");
  const last = path.pop();
  for (const part of path) graph = byId(graph, part)?.subgraph;
  return byId(graph, last);
}

function byId(graph, id) {
  return graph?.getNodeById?.(Number(id)) ?? graph?.getNodeById?.(id) ?? undefined;
}

/**
 * The node that ran under an id which no node has any more. A node that moves into a subgraph keeps its own number and type.
 * Undefined if no node or several nodes have both.
 */
export function movedNode(graph, id, type) {
  const number = String(id).split(":").pop();
  const found = new Set([...everyNode(graph)].map(([, node]) => node).filter((node) => String(node.id) === number && node.comfyClass === type));
  return found.size === 1 ? [...found][0] : undefined;
}
