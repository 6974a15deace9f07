/** Nodes by the ids of a run: "5:3" is node 3 in the subgraph of node 5. */

/** Every node of a graph and its subgraphs as `[execution id, node]`; a subgraph used twice gives its nodes twice. */
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

/** The execution ids under which a node of this graph runs. */
export function idsOf(graph, wanted) {
  return [...everyNode(graph)].filter(([, node]) => node === wanted).map(([id]) => id);
}
