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

  /** An event of `trace.progress`, or a state of `/trace/live`, whose points and previews are complete (`whole`). */
  hear(workflow, event, whole = false) {
    const before = this.get(workflow, event.node);
    if (whole && isStale(before?.live, event)) return before;
    const live = merged(before?.live, event, whole);
    const fresh = before?.live && before.live.prompt_id !== event.prompt_id;
    return this.#keep(workflow, event.node, { live, output: fresh ? undefined : before?.output });
  }

  /** A node's own output, as the `executed` event and the history have it. */
  executed(workflow, id, output) {
    return this.#keep(workflow, id, { live: this.get(workflow, id)?.live, output });
  }

  /** `[workflow, id, run]` of what still runs. */
  running() {
    return [...this.#known.values()].filter((run) => run.live?.state === "running");
  }

  #keep(workflow, id, run) {
    const key = `${workflow} ${id}`;
    const kept = { ...run, workflow, id: String(id), heard: Date.now() };
    this.#known.delete(key);
    this.#known.set(key, kept);
    for (const old of this.#known.keys()) {
      if (this.#known.size <= KEPT) break;
      this.#known.delete(old);
    }
    return kept;
  }
}

/** A complete state may have been on its way while newer events came. */
function isStale(live, event) {
  return live?.prompt_id === event.prompt_id && (live.points.length > (event.points?.length ?? 0) || (ended(live) && !ended(event)));
}

const ended = (live) => live.state !== "running";

function merged(live, event, whole) {
  const same = !whole && live?.prompt_id === event.prompt_id;
  return {
    ...event,
    points: joined(same ? live.points : [], event.points, "step"),
    previews: joined(same ? live.previews : [], event.previews, "filename"),
  };
}

/** Both lists, each key once: events are sent again with the last preview. */
function joined(before, more, key) {
  const known = new Set(before.map((entry) => entry[key]));
  return [...before, ...(more ?? []).filter((entry) => !known.has(entry[key]))];
}

/** A run as the training panel draws it, from events, from the output, or from both. */
export function training(run) {
  const { live, output } = run ?? {};
  const losses = output?.trace_losses;
  if (!losses) return live?.points ? live : undefined;
  const facts = { ...live, state: "done", points: losses, previews: output.trace_previews ?? [], window: output.trace_window };
  return { ...facts, phase: "done", step: losses.length, steps: losses.length, eta_seconds: null };
}
