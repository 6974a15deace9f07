/**
 * What is known of runs, by workflow and node: it outlives the nodes, which ComfyUI makes anew whenever a tab is switched or a
 * change is undone. No page is needed to import this.
 */

const KEPT = 64;

export class Runs {
  #known = new Map();

  get(workflow, id) {
    return this.#known.get(`${workflow} ${id}`);
  }

  /** What is known of a workflow's nodes, what was heard last at the end. */
  of(workflow) {
    return [...this.#known.values()].filter((run) => run.workflow === workflow);
  }

  /**
   * An event of `trace.progress`, or a state of `/trace/live`, whose points and previews are complete (`whole`).
   * `origin`: the prompt's `{workflow, types}`.
   */
  hear(origin, event, whole = false) {
    const before = this.get(origin.workflow, event.node);
    return this.#keep(origin, event.node, { ...before, live: merged(before?.live, event, whole) });
  }

  /** A node's own output, as the `executed` event and the history have it; it ends what an earlier run said. */
  executed(origin, id, output, prompt) {
    const live = this.get(origin.workflow, id)?.live;
    return this.#keep(origin, id, { live: live?.prompt_id === prompt ? live : undefined, output, prompt });
  }

  /** What still runs. */
  running() {
    return [...this.#known.values()].filter((run) => run.live?.state === "running");
  }

  #keep({ workflow, types }, id, run) {
    const key = `${workflow} ${id}`;
    const type = types?.[id] ?? this.get(workflow, id)?.type;
    const kept = { ...run, workflow, id: String(id), type, heard: Date.now() };
    this.#known.delete(key);
    this.#known.set(key, kept);
    for (const old of this.#known.keys()) {
      if (this.#known.size <= KEPT) break;
      this.#known.delete(old);
    }
    return kept;
  }
}

/** What was known of a run and what is new of it; of another run nothing stays. */
function merged(live, event, whole) {
  const before = live?.prompt_id === event.prompt_id ? live : undefined;
  return {
    ...(whole && isOlder(event, before) ? before : event),
    points: joined(before?.points, event.points, "step"),
    previews: joined(before?.previews, event.previews, "filename"),
  };
}

/** A complete state may have been on its way while newer events came. */
function isOlder(event, live) {
  if (!live) return false;
  return (event.state === "running" && live.state !== "running") || (event.step ?? 0) < (live.step ?? 0);
}

/** Both lists by step, each entry once: events are sent again with the last preview. */
function joined(before, more, key) {
  const all = new Map([...(before ?? []), ...(more ?? [])].map((entry) => [entry[key], entry]));
  return [...all.values()].sort((a, b) => a.step - b.step);
}

/** A run as the training panel draws it, from events, from the output, or from both. */
export function training(run) {
  const { live, output, prompt } = run ?? {};
  const losses = output?.trace_losses;
  if (!losses || (live && live.prompt_id !== prompt)) return live;
  const facts = { ...live, state: "done", points: losses, previews: output.trace_previews ?? [], window: output.trace_window };
  return { ...facts, phase: "done", step: losses.length, steps: losses.length, eta_seconds: null };
}
