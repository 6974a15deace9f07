/** Questions to the server: states of runs, outputs of earlier runs, and the workflows of both. */

import { api } from "../../scripts/api.js";

/** The address of a picture that an output names. */
export function pictureUrl({ filename, subfolder = "", type = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** The last state of every node that ran, with all its points. Null if the server does not answer. */
export function lastStates() {
  return json("/trace/live");
}

/** Runs that ended, as `{prompt_id, workflow, types, outputs}`, the oldest first. */
export async function history(most = 32) {
  const found = (await json(`/history?max_items=${most}`)) ?? {};
  return Object.entries(found).map(([id, entry]) => endedRun(id, entry));
}

/** The same for one run that ended just now. */
export async function ended(promptId, tries = 10) {
  const entry = (await json(`/history/${encodeURIComponent(promptId)}`))?.[promptId];
  if (entry || !tries) return endedRun(promptId, entry ?? {});
  await new Promise((resolve) => setTimeout(resolve, 200));
  return ended(promptId, tries - 1);
}

function endedRun(id, entry) {
  return { prompt_id: id, ...originIn(entry.prompt), outputs: entry.outputs ?? {} };
}

const origins = new Map();

/** `{workflow, types}` of a queued prompt: the workflow's id, since two open workflows may use the same node ids, and the nodes' types. */
export function originOf(promptId) {
  if (!origins.has(promptId)) {
    origins.set(promptId, lookUp(promptId).then((found) => {
      if (found.workflow === undefined) origins.delete(promptId);
      return found;
    }));
  }
  return origins.get(promptId);
}

async function lookUp(promptId) {
  const queue = (await json("/queue")) ?? {};
  const queued = [...(queue.queue_running ?? []), ...(queue.queue_pending ?? [])].find((entry) => entry[1] === promptId);
  const entry = queued ?? (await json(`/history/${encodeURIComponent(promptId)}`))?.[promptId]?.prompt;
  return originIn(entry);
}

/** The origin in an entry `[number, id, prompt, extra data, ...]` of the queue. */
function originIn(entry) {
  const types = Object.entries(entry?.[2] ?? {}).map(([id, node]) => [id, node?.class_type]);
  return { workflow: entry?.[3]?.extra_pnginfo?.workflow?.id, types: Object.fromEntries(types) };
}

/** The server's answer, or null. */
async function json(path) {
  try {
    const answer = await api.fetchApi(path);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // the server is away, and ComfyUI itself tells the user
  }
}
