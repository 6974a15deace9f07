// What the tests do on the page. A scenario returns facts; the assertions are in test_browser.py.

import { load, lookAt, open, panel, picture, queue, ready, theme, until, untidy, without } from "./page.mjs";

const FINETUNE = "TRACE_LateStageFinetune";
const COMPARE = "TRACE_CompareErasure";
const PROJECTION = "TRACE_ClosedFormProjection";
const APPLY = "TRACE_ApplyErasureLora";
const SMALL = { width: 32, height: 32 }; // pictures that are trained on, where nobody looks at them
const QUICK = { ...SMALL, objective: "esd", preview_every: 0 }; // a training that samples no keep set, where any will do
const COARSE = { [COMPARE]: { steps: 6 } }; // where a judge of pictures is content with less than the twelve steps of a demo model
const TRAP = `<img src=x onerror="window.trapped=1">`;
const SHORT_TRAP = "<b>x</b>"; // a demo model reads 24 tokens

const shot = (given, name) => `${given.out}/${name}.jpg`;

export const scenarios = { quickstart, templates, training, cancelled, failed, traps, subgraph, applied, removed, translated, help, folded, cached };

/** By mouse alone: category, template, Run; and the time from the template's click to the first picture. */
async function quickstart(page, given) {
  await open(page, given);
  await page.evaluate(() => app.extensionManager.command.execute("Comfy.BrowseTemplates"));
  let clicks = 0;
  const click = async (locator) => {
    await locator.click();
    clicks++;
  };
  await click(page.locator(".p-listbox-option, nav span", { hasText: given.pack }).last());
  const card = (name) => page.getByTestId(`template-workflow-${name}`);
  const cards = page.locator("[data-testid^='template-workflow-']");
  await cards.first().waitFor();
  for (let seen = 0; seen < (await cards.count()); ) { // a page adds cards when the last one is to be seen
    seen = await cards.count();
    await cards.last().scrollIntoViewIfNeeded();
    await page.waitForTimeout(500);
  }
  for (const name of given.names) {
    await card(name).scrollIntoViewIfNeeded(); // newer pages load a picture when it is to be seen
    await card(name).locator("img").first().waitFor({ state: "attached" });
  }
  await card("quickstart").scrollIntoViewIfNeeded();
  if (given.pictures) await page.screenshot({ path: shot(given, "templates"), type: "jpeg", quality: 60 });
  const listed = await cards.evaluateAll((all) => all.map((e) => e.dataset.testid.slice(18)));
  const start = Date.now();
  await click(card("quickstart"));
  await page.waitForFunction((type) => app.graph.nodes.some((n) => n.type === type), COMPARE);
  await click(page.locator("button[data-testid='queue-button'], [data-testid='queue-button'] button").first());
  const shown = await until(page, COMPARE, (p) => p.pictures === 2);
  const seconds = (Date.now() - start) / 1000;
  if (given.pictures) await page.screenshot({ path: shot(given, "page"), type: "jpeg", quality: 70 });
  return { clicks, seconds, listed, shown, untidy: await untidy(page), reports: await page.evaluate(readReports) };
}

/** What the text previews show: whether as Markdown (null where the page has no such mode), and its first heading. */
function readReports() {
  return window.app.graph.nodes.filter((node) => node.type === "PreviewAny").map((node) => ({
    markdown: node.widgets.find((widget) => widget.name === "preview_mode")?.value ?? null,
    heading: document.querySelector(`[data-node-id="${node.id}"] h1`)?.textContent ?? null,
  }));
}

/** Every template on the page: whether all its nodes are known, and what comes of it when it is queued (those in `given.queued`). */
async function templates(page, given) {
  await open(page, given);
  const facts = {};
  for (const name of given.names) {
    await load(page, given, name, COARSE);
    await page.waitForTimeout(300);
    facts[name] = await page.evaluate(() => ({
      nodes: app.graph.nodes.length,
      unknown: app.graph.nodes.filter((n) => n.has_errors || !LiteGraph.registered_node_types[n.type]).map((n) => n.type),
    }));
    if (!given.queued.includes(name)) continue;
    await queue(page);
    facts[name].shown = await until(page, COMPARE, (p) => p.pictures === 2 && p.report !== null);
    if (given.pictures) await page.screenshot({ path: shot(given, `template-${name}`), type: "jpeg", quality: 60 });
  }
  return { facts };
}

/** The whole of TRACE; the page is loaded anew while it trains. */
async function training(page, given) {
  await open(page, given);
  await load(page, given, "trace-full", { ...COARSE, [FINETUNE]: { ...SMALL, steps: 12, preview_every: 4, seed: given.seed ?? 5 } });
  const before = await panel(page, FINETUNE);
  await queue(page);
  const running = await until(page, FINETUNE, (p) => p.state === "running" && p.points >= 3 && p.previews >= 1);
  await page.reload();
  await ready(page);
  const restored = await until(page, FINETUNE, (p) => p.points >= 3 && p.previews >= 1);
  const done = await until(page, FINETUNE, (p) => p.state === "done" && p.report !== null && p.previews === 2);
  const compared = await until(page, COMPARE, (p) => p.pictures === 2);
  const tidy = await untidy(page);
  const slid = await slide(page);
  if (given.pictures) await shots(page, given);
  await page.reload();
  await ready(page);
  const again = await until(page, FINETUNE, (p) => p.state === "done" && p.points === 12 && p.previews === 2 && p.report !== null);
  const comparedAgain = await until(page, COMPARE, (p) => p.pictures === 2);
  return { before, running, restored, done, compared, slid, again, comparedAgain, untidy: tidy };
}

/** The divider by keyboard and by mouse, and the next pair. */
async function slide(page) {
  await lookAt(page, COMPARE);
  const range = page.locator(".trace-slider:visible input");
  const at = () => page.locator(".trace-slider:visible").evaluate((e) => e.style.getPropertyValue("--trace-at"));
  await range.focus();
  const start = await at();
  await page.keyboard.press("ArrowRight");
  const key = await at();
  const box = await range.boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 4, box.y + box.height / 2, { steps: 4 });
  await page.mouse.up();
  const drag = await at();
  const chosen = () => page.locator(".trace-bar:visible select").evaluate((e) => e.selectedIndex);
  const first = await chosen();
  await page.locator(".trace-bar:visible").getByLabel("Next pair").click();
  return { start, key, drag, first, next: await chosen() };
}

async function shots(page, given) {
  const unfold = () => page.locator(".trace-report:visible summary").last().click();
  for (const name of ["dark", "light"]) {
    await theme(page, name);
    await picture(page, FINETUNE, shot(given, `finetune-${name}`), 0.8);
    await picture(page, COMPARE, shot(given, `compare-${name}`), 0.8);
    await unfold();
    await picture(page, COMPARE, shot(given, `report-${name}`), 0.8);
    await unfold();
  }
  await theme(page, "dark");
}

async function cancelled(page, given) {
  await open(page, given);
  await load(page, given, "trace-full", { [FINETUNE]: { ...QUICK, steps: 5000, seed: given.seed ?? 7 } });
  await queue(page);
  await until(page, FINETUNE, (p) => p.state === "running" && p.points >= 2);
  await page.evaluate(() => app.extensionManager.command.execute("Comfy.Interrupt"));
  const shown = await until(page, FINETUNE, (p) => p.state !== "running", 60_000);
  if (given.pictures) await picture(page, FINETUNE, shot(given, "cancelled"), 0.8);
  await page.reload();
  await ready(page);
  return { shown, again: await until(page, FINETUNE, (p) => p.state !== null) };
}

async function failed(page, given) {
  await open(page, given);
  await load(page, given, "trace-full", { [FINETUNE]: { erase: " -> dog" } });
  await queue(page);
  return { shown: await until(page, FINETUNE, (p) => p.state !== null && p.state !== "running") };
}

/** HTML in every text that a user writes. */
async function traps(page, given) {
  await open(page, given);
  await load(page, given, "quickstart", { [PROJECTION]: { erase: `cat\n"${SHORT_TRAP}"` }, [COMPARE]: { ...COARSE[COMPARE], prompts: `a photo of a cat, google style\n${SHORT_TRAP}` } });
  await queue(page);
  const compared = await until(page, COMPARE, (p) => p.pictures === 2 && p.report !== null, 60_000);
  const projected = await until(page, PROJECTION, (p) => p.report !== null, 60_000);
  const rendered = await page.evaluate(async ([pack, trap]) => {
    const { render, verdict } = await import(`/extensions/${pack}/markdown.js`);
    const { facts } = await import(`/extensions/${pack}/metadata.js`);
    const { CompareView } = await import(`/extensions/${pack}/compare.js`);
    const compare = new CompareView(() => "/x.png");
    compare.update({ trace_pairs: [{ prompt: trap, seed: trap, before: {}, after: {} }], images: [{}] });
    const text = `# ${trap}\n\n**${trap}** \`${trap}\`\n\n| a | b |\n| --- | --- |\n| ${trap} | x \\| y |\n\n- ${trap}\n\n> **quote** ${trap}`;
    const element = render(text);
    element.append(compare.element);
    document.body.append(element);
    const found = { images: element.querySelectorAll("img[src='x']").length, option: compare.choice.textContent, cells: [...element.querySelectorAll("td")].map((e) => e.textContent),
      heading: element.querySelector("h3").textContent, code: element.querySelector("code").textContent, verdict: verdict(text) };
    element.remove();
    return { ...found, odd: facts({ "trace.concepts": { a: trap }, "trace.window": "x", "trace.base": null, "trace.keep": 3 }).length };
  }, [given.pack, TRAP]);
  await page.waitForTimeout(500);
  const bold = await page.evaluate(() => [...document.querySelectorAll(".trace-panel b")].filter((e) => e.textContent === "x").length);
  const trapped = await page.evaluate(() => window.trapped ?? null);
  return { compared, projected, rendered, bold, trapped, caught: await caught(page, given) };
}

/** Errors made on purpose, one in our code and one of a picture: how many were noticed. */
async function caught(page, { pack, problems }) {
  const before = problems.length;
  await page.evaluate((pack) => {
    import(`/extensions/${pack}/runs.js`).then(({ Runs }) => new Runs().executed(null));
    document.createElement("img").src = "/view?filename=gone.png&subfolder=trace&type=temp";
  }, pack);
  await page.waitForTimeout(1000);
  return problems.splice(before).length;
}

/** Two finetunes at once, one of them in a subgraph; then the other one, which has run, is put into one too. The page's own ways. */
async function subgraph(page, given) {
  await open(page, given);
  await load(page, given, "trace-full", { [FINETUNE]: { ...QUICK, steps: 3, seed: 21 } });
  await without(page, COMPARE, "LossGraphNode", "TRACE_SaveErasureLora");
  await page.evaluate((type) => {
    const inner = app.graph.nodes.find((n) => n.type === type);
    const outer = LiteGraph.createNode(type);
    app.graph.add(outer);
    outer.pos = [inner.pos[0], inner.pos[1] + 1200];
    for (const [i, slot] of inner.inputs.entries()) {
      const link = slot.link == null ? null : app.graph.links.get(slot.link);
      if (link) app.graph.getNodeById(link.origin_id).connect(link.origin_slot, outer, outer.inputs.findIndex((s) => s.name === slot.name) ?? i);
    }
    for (const widget of outer.widgets) widget.value = inner.widgets.find((w) => w.name === widget.name)?.value ?? widget.value;
    outer.widgets.find((w) => w.name === "seed").value = 22;
    const shown = LiteGraph.createNode("PreviewAny");
    app.graph.add(shown);
    outer.connect(3, shown, 0);
    app.graph.convertToSubgraph(new Set([inner]));
  }, FINETUNE);
  await queue(page);
  const outside = await until(page, FINETUNE, (p) => p.state === "done" && p.report !== null);
  await enter(page, 0);
  const inside = await until(page, FINETUNE, (p) => p.state === "done" && p.report !== null);
  await page.waitForTimeout(500);
  const visible = await page.evaluate(() => [...document.querySelectorAll(".trace-panel")].filter((e) => e.offsetParent).length);
  await page.evaluate(() => app.canvas.setGraph(app.graph));
  await page.evaluate(async (types) => {
    app.canvas.selectItems(app.graph.nodes.filter((n) => types.includes(n.type)));
    await app.extensionManager.command.execute("Comfy.Graph.ConvertToSubgraph");
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    if (tracker.captureCanvasState) tracker.captureCanvasState(); // as a click does; what was noted outlasts a reload
    else tracker.checkState(); // until page 1.28
  }, [FINETUNE, PROJECTION]);
  await enter(page, 1);
  const moved = await until(page, FINETUNE, (p) => p.state === "done" && p.report !== null);
  const movedProjection = await until(page, PROJECTION, (p) => p.report !== null);
  if (given.pictures) await picture(page, FINETUNE, shot(given, "moved"), 0.8);
  await page.waitForTimeout(3000); // the page writes its draft some time after a change
  await page.reload();
  await ready(page);
  await enter(page, 1);
  const again = await until(page, FINETUNE, (p) => p.state === "done" && p.report !== null);
  return { outside, inside, visible, moved, movedProjection, again };
}

/** Open a subgraph, once it is there. */
async function enter(page, number) {
  await page.waitForFunction((number) => app.graph.nodes.filter((n) => n.subgraph).length > number, number);
  await page.evaluate((number) => app.canvas.openSubgraph(app.graph.nodes.filter((n) => n.subgraph)[number].subgraph), number);
}

async function applied(page, given) {
  await open(page, given);
  await load(page, given, "apply-and-stack", COARSE);
  await queue(page);
  const shown = await until(page, APPLY, (p) => p.metadata !== null);
  await until(page, COMPARE, (p) => p.pictures === 2);
  if (!given.pictures) return { shown };
  await picture(page, APPLY, shot(given, "apply-folded"), 1);
  await page.evaluate((type) => {
    const node = app.canvas.graph.nodes.find((n) => n.type === type);
    node.widgets.at(-1).element.querySelector(".trace-metadata").open = true;
  }, APPLY);
  for (const name of ["light", "dark"]) {
    await theme(page, name);
    await picture(page, APPLY, shot(given, `apply-${name}`), 1);
  }
  return { shown };
}

/** A removed node takes its panel along, and events for it do no harm. */
async function removed(page, given) {
  await open(page, given);
  await load(page, given, "trace-full", { [FINETUNE]: { ...QUICK, steps: 40, seed: 31 } });
  await queue(page);
  await until(page, FINETUNE, (p) => p.state === "running");
  await page.evaluate((type) => app.graph.remove(app.graph.nodes.find((n) => n.type === type)), FINETUNE);
  await page.waitForTimeout(1500);
  const left = await page.evaluate(() => document.querySelectorAll(".trace-panel .trace-training").length);
  await page.evaluate(() => app.extensionManager.command.execute("Comfy.Interrupt"));
  await page.waitForTimeout(1000);
  return { left };
}

/** A workflow that is loaded and queued once more: its results come from the cache, its panels were never filled. */
async function cached(page, given) {
  await open(page, given);
  for (const _ of [1, 2]) {
    await load(page, given, "quickstart", COARSE);
    await queue(page);
    await until(page, COMPARE, (p) => p.pictures === 2);
  }
  return { projected: await until(page, PROJECTION, (p) => p.report !== null, 20_000) };
}

/** The help page of a node, opened by its own button as a user does. */
async function help(page, given) {
  await open(page, given);
  await load(page, given, "quickstart");
  const title = await page.evaluate((type) => {
    const node = app.graph.nodes.find((n) => n.type === type);
    const { scale, offset } = Object.assign(app.canvas.ds, { scale: 0.8, offset: [400 - node.pos[0], 320 - node.pos[1]] }); // its toolbox is above it
    app.canvas.setDirty(true, true);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + (node.pos[0] + 60 + offset[0]) * scale, box.top + (node.pos[1] - 15 + offset[1]) * scale];
  }, PROJECTION);
  await page.waitForTimeout(400);
  await page.mouse.click(...title);
  await page.locator("[data-testid='info-button']").first().click();
  const text = page.getByText("Every layer that reads text gets one low-rank edit").first();
  await text.waitFor({ timeout: 30_000 });
  await page.waitForFunction(() => [...document.images].some((img) => img.src.includes("/docs/images/") && img.naturalWidth > 0), undefined, { timeout: 30_000 });
  if (given.pictures) await page.screenshot({ path: shot(given, "help"), type: "jpeg", quality: 60 });
  return { text: await text.textContent() };
}

/** Which widgets a node shows in the new design, as it is made, as it came with values of its own, and unfolded by its button. */
async function folded(page, given) {
  await open(page, given);
  await load(page, given, "trace-full");
  const rows = (type) => page.evaluate((type) => {
    const node = app.graph.nodes.find((n) => n.type === type);
    const shown = document.querySelector(`[data-node-id="${node.id}"]`).innerText;
    return node.widgets.map((w) => w.name).filter((name) => shown.split("\n").includes(name));
  }, type);
  await lookAt(page, FINETUNE, 0.6);
  const made = await rows(FINETUNE);
  const came = await rows(PROJECTION);
  const id = await page.evaluate((type) => app.graph.nodes.find((n) => n.type === type).id, FINETUNE);
  await page.locator(`[data-node-id="${id}"] [data-testid="advanced-inputs-button"]`).click();
  await page.waitForTimeout(500);
  return { made, came, unfolded: await rows(FINETUNE) };
}

/** What the nodes' inputs and outputs are called in another language. */
async function translated(page, given) {
  const language = (name) => page.request.post(`${given.url}/api/settings`, { data: { "Comfy.Locale": name } });
  await language("zh");
  try {
    await open(page, given);
    await load(page, given, "trace-full");
    return await page.evaluate((type) => {
      const node = app.graph.nodes.find((n) => n.type === type);
      return { title: node.title, widgets: node.widgets.map((w) => w.label ?? w.name), inputs: node.inputs.map((s) => s.localized_name ?? s.name),
        outputs: node.outputs.map((s) => s.localized_name ?? s.name) };
    }, FINETUNE);
  } finally {
    await language("en");
  }
}
