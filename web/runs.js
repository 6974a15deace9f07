/**
 * What is known of runs, by workflow and node. ComfyUI makes nodes anew whenever a tab is switched or a change is undone, and
 * this memory outlives them. The module imports nothing of the page.
 */

const REMEMBERED = 64; //: runs

export class Runs {
  #known = new Map();

  get(workflow, id) {
    return this.#known.get(`${workflow} ${id}`);
  }

  /** What is known of a workflow's nodes. What was heard last is at the end. */
  of(workflow) {
    return [...this.#known.values()].filter((run) => run.workflow === workflow);
  }

  /**
   * Take an event of `trace.progress`, or a state of `/trace/live`. Points and previews of a state are complete (`whole`).
   * `origin`: the prompt's `{workflow, types}`.
   */
  hear(origin, event, whole = false) {
    const before = this.get(origin.workflow, event.node);
    return this.#keep(origin, event.node, { ...before, live: merged(before?.live, event, whole) });
  }

  /** Take a node's output, from the `executed` event or the history. What an earlier run said is dropped. */
  executed(origin, id, output, prompt) {
    const live = this.get(origin.workflow, id)?.live;
    return this.#keep(origin, id, { live: live?.prompt_id === prompt ? live : undefined, output, prompt });
  }

  /** The runs that have not ended. */
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
      if (this.#known.size <= REMEMBERED) break;
      this.#known.delete(old);
    }
    return kept;
  }
}

/** The state of a run after an event. Nothing stays of another run. */
function merged(live, event, whole) {
  const before = live?.prompt_id === event.prompt_id ? live : undefined;
  return {
    ...(whole && isOlder(event, before) ? before : event),
    points: joined(before?.points, event.points, "step"),
    previews: joined(before?.previews, event.previews, "filename"),
  };
}

/** Whether a complete state is older than what is known: newer events may have come while it was on its way. */
function isOlder(event, live) {
  if (!live) return false;
  return (event.state === "running" && live.state !== "running") || (event.step ?? 0) < (live.step ?? 0);
}

/** Both lists in the order of their steps, without repetitions: an event repeats the last preview. */
function joined(before, more, key) {
  const all = new Map([...(before ?? []), ...(more ?? [])].map((entry) => [entry[key], entry]));
  return [...all.values()].sort((a, b) => a.step - b.step);
}

/** A run as the training panel draws it: from events, from the output, or from both. */
export function training(run) {
  const { live, output, prompt } = run ?? {};
  const losses = output?.trace_losses;
  if (!losses || (live && live.prompt_id !== prompt)) return live;
  const facts = { ...live, state: "done", points: losses, previews: output.trace_previews ?? [], window: output.trace_window };
  return { ...facts, phase: "done", step: losses.length, steps: losses.length, eta_seconds: null };
}
