/** What is asked of the server: states of runs, outputs of earlier ones, and whose they are. */

import { api } from "../../scripts/api.js";

/** The address of a picture that an output names. */
export function pictureUrl({ filename, subfolder = "", type = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** The last state of every node that ran, with all its points; null if the server did not say. */
export function lastStates() {
  return json("/trace/live");
}

/** Runs that ended, the oldest first: `{prompt_id, workflow, types, outputs}`. */
export async function history(most = 32) {
  const found = (await json(`/history?max_items=${most}`)) ?? {};
  return Object.entries(found).map(([id, entry]) => told(id, entry));
}

/** The same of one run that ended just now. */
export async function ended(promptId, tries = 10) {
  const entry = (await json(`/history/${encodeURIComponent(promptId)}`))?.[promptId];
  if (entry || !tries) return told(promptId, entry ?? {});
  await new Promise((resolve) => setTimeout(resolve, 200));
  return ended(promptId, tries - 1);
}

function told(id, entry) {
  return { prompt_id: id, ...originIn(entry.prompt), outputs: entry.outputs ?? {} };
}

const known = new Map();

/** `{workflow, types}` of what was queued: the workflow's id, as nodes of two open ones may have the same, and the nodes' types. */
export function originOf(promptId) {
  if (!known.has(promptId)) {
    known.set(promptId, lookUp(promptId).then((found) => {
      if (found.workflow === undefined) known.delete(promptId);
      return found;
    }));
  }
  return known.get(promptId);
}

async function lookUp(promptId) {
  const queue = (await json("/queue")) ?? {};
  const queued = [...(queue.queue_running ?? []), ...(queue.queue_pending ?? [])].find((entry) => entry[1] === promptId);
  const entry = queued ?? (await json(`/history/${encodeURIComponent(promptId)}`))?.[promptId]?.prompt;
  return originIn(entry);
}

/** Of `[number, id, prompt, extra data, ...]`. */
function originIn(entry) {
  const types = Object.entries(entry?.[2] ?? {}).map(([id, node]) => [id, node?.class_type]);
  return { workflow: entry?.[3]?.extra_pnginfo?.workflow?.id, types: Object.fromEntries(types) };
}

async function json(path) {
  try {
    const answer = await api.fetchApi(path);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // the server is away; ComfyUI tells the user itself
  }
}
