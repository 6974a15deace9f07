// ComfyUI's page, as the scenarios use it.

const READY = () => window.app?.graph && window.app.extensionManager && document.querySelector(".graph-canvas-container, #graph-canvas");

export async function open(page, { url, newDesign = false }) {
  const settings = { "Comfy.TutorialCompleted": true, "Comfy.UseNewMenu": "Top", "Comfy.VueNodes.Enabled": newDesign };
  await page.request.post(`${url}/api/settings`, { data: settings });
  // ComfyUI's own templates are a package of 85 MB that is not installed here, and without their list no template opens at all
  await page.route(/\/templates\/index.*\.json/, (route) => route.fulfill({ json: [] }));
  await page.goto(url);
  await ready(page);
}

export async function ready(page) {
  await page.waitForFunction(READY, undefined, { timeout: 120_000 });
  await page.waitForFunction(() => !document.querySelector(".p-blockui-mask, .p-progressspinner"), undefined, { timeout: 60_000 });
}

/** Load a template without the dialog; `widgets`: {node type: {widget: value}}. */
export async function load(page, { pack }, name, widgets = {}) {
  await page.evaluate(async ([pack, name, widgets]) => {
    const workflow = await (await fetch(`/api/workflow_templates/${pack}/${name}.json`)).json();
    await app.loadGraphData(workflow, true, true, name);
    for (const node of app.graph.nodes) {
      for (const widget of node.widgets ?? []) {
        const value = widgets[node.type]?.[widget.name];
        if (value !== undefined) widget.value = value;
      }
    }
  }, [pack, name, widgets]);
}

/** Take the nodes of these types off the canvas: what a scenario does not look at need not run. */
export const without = (page, ...types) => page.evaluate((types) => {
  for (const node of app.graph.nodes.filter((n) => types.includes(n.type))) app.graph.remove(node);
}, types);

/** Queue what is on the canvas. */
export const queue = (page) => page.evaluate(() => app.queuePrompt(0, 1));

/** Bring a node into view, at a scale. */
export async function lookAt(page, type, scale = 1) {
  await page.evaluate(([type, scale]) => {
    const node = app.canvas.graph.nodes.find((n) => n.type === type);
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [120 / scale - node.pos[0], 110 / scale - node.pos[1]];
    app.canvas.setDirty(true, true);
  }, [type, scale]);
  await page.waitForTimeout(400);
}

/**
 * What is wrong with how nodes are drawn: which cover each other, and pictures of ours that are shown once more outside their panels.
 * In the classic design they would be on the canvas, where a node that shows pictures has loaded them.
 */
export async function untidy(page) {
  await page.waitForTimeout(800); // sizes follow what is shown a little later
  return page.evaluate(() => {
    const byPage = Boolean(window.LiteGraph.vueNodesMode);
    const scale = window.app.canvas.ds.scale;
    const element = (node) => document.querySelector(`[data-node-id="${node.id}"]`);
    const boxes = window.app.graph.nodes.map((node) => {
      const drawn = byPage && element(node).getBoundingClientRect();
      const height = drawn ? drawn.height / scale : node.size[1] + 30;
      return { name: node.title, left: node.pos[0], top: node.pos[1] - 30, right: node.pos[0] + node.size[0], bottom: node.pos[1] - 30 + height };
    });
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const covered = boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b)).map((b) => `${a.name} and ${b.name}`));
    const shown = (img) => !img.closest(".trace-panel") && img.checkVisibility();
    const twice = window.app.graph.nodes.filter((node) => node.comfyClass?.startsWith("TRACE_")).filter((node) =>
      byPage ? [...element(node).querySelectorAll("img")].some(shown) : node.widgets?.some((w) => w.name === "$$canvas-image-preview"));
    return { covered, twice: twice.map((node) => node.title) };
  });
}

/** What a node's panel says; null without one. */
export const panel = (page, type) => page.evaluate(readPanel, type);

/** Wait until `test(panel)`, a function that reads no variable of its surroundings, is true of a node's panel. */
export async function until(page, type, test, timeout = 180_000) {
  const source = `(() => { const panel = (${readPanel})(${JSON.stringify(type)}); return panel && (${test})(panel); })()`;
  try {
    await page.waitForFunction(source, undefined, { timeout, polling: 200 });
  } catch (error) {
    throw new Error(`${type} never came to ${test}; it shows ${JSON.stringify(await panel(page, type))}\n${error}`);
  }
  return panel(page, type);
}

function readPanel(type) {
  const node = window.app.canvas.graph.nodes.find((n) => n.type === type);
  const element = node?.widgets?.find((w) => w.name === "trace_panel")?.element;
  if (!element) return null;
  const text = (selector) => {
    const found = element.querySelector(selector);
    return found && !found.closest("[hidden]") ? found.textContent : null;
  };
  const drawn = (selector) => [...element.querySelectorAll(selector)].filter((e) => !e.closest("[hidden]"));
  return {
    state: text(".trace-badge"), phase: text(".trace-phase"), speed: text(".trace-speed"), error: text(".trace-error"),
    bar: element.querySelector("progress")?.value ?? null,
    curves: drawn(".trace-line").length,
    legend: drawn(".trace-legend span").map((e) => e.textContent),
    points: Math.max(0, ...drawn(".trace-line").map((e) => (e.getAttribute("d").match(/[ML]/g) ?? []).length)),
    window: text(".trace-window-head span:last-child"),
    previews: drawn(".trace-previews img").filter((e) => e.naturalWidth > 0).length,
    prompts: drawn(".trace-prompts span").map((e) => e.textContent),
    pairs: drawn(".trace-bar option").map((e) => e.textContent),
    pictures: drawn(".trace-slider img").filter((e) => e.naturalWidth > 0).length,
    report: text(".trace-report summary"), reportBody: text(".trace-report-body"), tables: drawn(".trace-report table").length,
    metadata: text(".trace-metadata"),
  };
}

export async function theme(page, name) {
  await page.evaluate((name) => app.extensionManager.setting.set("Comfy.ColorPalette", name), name);
  await page.waitForTimeout(600);
}

/** A node with its frame, as a small JPEG; it is drawn smaller if it is higher than the page. */
export async function picture(page, type, path, scale = 1) {
  const height = await page.evaluate((type) => app.canvas.graph.nodes.find((n) => n.type === type).size[1], type);
  await lookAt(page, type, Math.min(scale, 740 / height));
  const clip = await page.evaluate((type) => {
    const node = app.canvas.graph.nodes.find((n) => n.type === type);
    const { scale, offset } = app.canvas.ds;
    const box = app.canvas.canvas.getBoundingClientRect();
    const [x, y] = [0, 1].map((i) => [box.left, box.top][i] + (node.pos[i] + offset[i]) * scale);
    return { x: x - 12, y: y - 40 * scale, width: node.size[0] * scale + 24, height: node.size[1] * scale + 40 * scale + 12 };
  }, type);
  await page.mouse.move(clip.x + clip.width + 60, 300);
  await page.screenshot({ path, type: "jpeg", quality: 75, clip });
}
