// Opens the example's page in headless Chromium and asks it questions. Reads
// {playwright, chromium, profile, url, questions, pictures} from the standard input as JSON; writes
// {ready, seconds, answers: [{question, milliseconds, titles, vector}], hosts, complaints}.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const job = JSON.parse(readFileSync(0, "utf-8"));
const { default: playwright } = await import(pathToFileURL(job.playwright));
const context = await playwright.chromium.launchPersistentContext(job.profile, {
  executablePath: job.chromium,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await context.newPage();
  const hosts = new Set();
  const complaints = [];
  page.on("request", (request) => hosts.add(new URL(request.url()).host || "inline"));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  const started = performance.now();
  await page.goto(job.url);
  await page.waitForSelector("body[data-ready], body[data-failed]", { timeout: 300_000 });
  const seconds = (performance.now() - started) / 1000;
  const failed = await page.evaluate(() => document.body.dataset.failed);
  const ready = failed ?? Number(await page.evaluate(() => document.body.dataset.ready));
  const answers = [];
  for (const question of failed ? [] : job.questions) {
    await page.evaluate(() => delete document.body.dataset.vector);
    await page.fill("#question", question);
    await page.click("button");
    await page.waitForSelector("body[data-vector]", { timeout: 60_000 });
    const said = await page.textContent("#status");
    answers.push({
      question,
      milliseconds: Number(said.match(/in (\d+) ms/)[1]),
      titles: await page.locator("li h2").allTextContents(),
      vector: JSON.parse(await page.evaluate(() => document.body.dataset.vector)),
    });
  }
  for (const { path, width, scheme } of job.pictures ?? []) {
    await page.setViewportSize({ width, height: 900 });
    await page.emulateMedia({ colorScheme: scheme });
    await page.screenshot({ path });
  }
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  process.stdout.write(
    JSON.stringify({ ready, seconds, answers, hosts: [...hosts], complaints, overflow }),
  );
} finally {
  await context.close();
}
