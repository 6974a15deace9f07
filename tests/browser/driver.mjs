// One headless Chromium for the whole tier. Reads a line of JSON for each scenario, {scenario, given}, and answers with one:
// {result} or {error}. Every scenario has a page of its own with nothing remembered of the ones before.
//
//   node driver.mjs PLAYWRIGHT_FOLDER CHROMIUM SERVER_URL PACK

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { scenarios } from "./scenarios.mjs";

const [folder, executablePath, url, pack] = process.argv.slice(2);
const { chromium } = createRequire(`${folder}/`)("playwright-core");
const ITS_OWN = [/open_maskeditor/, /legacy queue\/history menu/, /^input\.link is deprecated/]; // what the page warns of in its own use of itself
const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

const browser = await chromium.launch({ executablePath, args: QUIET });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } }); // one: the compiled page is in its cache
for await (const line of createInterface({ input: process.stdin })) {
  const { scenario, given } = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(await answer(scenario, given))}\n`);
}
await browser.close();

async function answer(name, given) {
  const page = await context.newPage();
  const problems = listen(page);
  try {
    return { result: { ...(await scenarios[name](page, { url, pack, problems, ...given })), problems } };
  } catch (error) {
    await page.screenshot({ path: `${given.out}/error-${name}.png` }).catch(() => {});
    return { error: `${error.stack ?? error}\n${problems.join("\n")}` };
  } finally {
    await page.goto(`${url}/system_stats`).catch(() => {});
    await page.evaluate(() => localStorage.clear()).catch(() => {}); // what is in the session's storage ends with the page
    await page.close();
  }
}

/**
 * Of our files: errors that no one caught, and what they write to the console as one; of our pictures and states: that they did not
 * come; and warnings that something deprecated is used, which name no file. The page has some errors of its own, and looks for a help
 * page in the user's language first.
 */
function listen(page) {
  const problems = [];
  const ours = (text) => [`/extensions/${pack}/`, "/trace/live", "subfolder=trace"].some((part) => text.includes(part));
  page.on("pageerror", (error) => ours(String(error.stack)) && problems.push(`uncaught: ${error.stack}`));
  page.on("console", (message) => {
    const from = message.location().url ?? "";
    const deprecated = message.type() === "warning" && /deprecat/i.test(message.text()) && !ITS_OWN.some((own) => own.test(message.text()));
    if (deprecated) problems.push(`deprecated: ${message.text()}`);
    if (/\/docs\/\w+\/[\w-]+\.md$/.test(from)) return;
    if (message.type() === "error" && (ours(from) || ours(message.text()))) problems.push(`${from}: ${message.text()}`);
  });
  return problems;
}
