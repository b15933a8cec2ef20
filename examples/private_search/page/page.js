"use strict";
// Text of others reaches the page through textContent alone; the server's policy forbids the rest.

const $ = (id) => document.getElementById(id);
const KINDS = { file: "File", mail: "Mail", page: "Page" };
let asked = "", found = [], running = null, polling = 0;

function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function api(path, body) {
  const options = body && { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

// Views

function show(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (name === "map") loadMap();
  if (name === "sources") loadState(true);
}
for (const tab of document.querySelectorAll("[role=tab]")) tab.onclick = () => show(tab.id.slice(4));

// Questions

$("ask").onsubmit = async (event) => {
  event.preventDefault();
  running?.abort();
  const mine = (running = new AbortController());
  const body = { question: $("question").value };
  for (const [name, value] of new FormData($("ask"))) if (value) body[name] = value;
  asked = body.question;
  found = [];
  $("results").className = "";
  $("hits").replaceChildren();
  $("answer").replaceChildren(node("p", { className: "quiet writing", textContent: "Searching " }));
  try {
    const answer = await fetch("api/ask", { method: "POST", body: JSON.stringify(body), signal: mine.signal });
    if (!answer.ok) throw new Error(await answer.text());
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (waiting + part.value).split("\n");
      waiting = lines.pop();
      for (const line of lines) take(JSON.parse(line));
    }
  } catch (error) {
    if (!mine.signal.aborted) fail(error.message);
  }
};

function take(part) {
  if (part.hits) showHits(part);
  else if (part.sentence) showSentence(part);
  else if (part.error) fail(part.error);
  else if (part.done) $("answer").querySelector(".writing")?.remove();
}

function fail(message) {
  $("answer").querySelector(".writing")?.remove();
  $("answer").append(node("p", { className: "failed", textContent: message }));
}

function showHits({ hits, answerable, fresh }) {
  found = hits;
  const said = $("answer");
  said.replaceChildren(node("h2", { textContent: answerable ? "Answer" : "Not in your documents" }));
  if (!fresh) said.append(node("p", { className: "quiet", textContent: "The index is still being updated: this is what is in it so far." }));
  const items = hits.map(hitItem);
  if (answerable && $("status").dataset.generator === "true") {
    said.append(node("p", { className: "quiet writing", textContent: "Writing " }));
  } else if (answerable) {
    said.append(node("p", { className: "sentence" }, hits[0].sentences.join(" ") || hits[0].title, cite(1)),
      node("p", { className: "quiet", textContent: "Quoted: no model that writes answers was found. With Ollama: ollama pull gemma3:270m" }));
  } else if (hits.length) {
    said.append(node("p", { textContent: "Nothing in the index says more to this than to any other question." }));
    const weak = node("button", { textContent: "Show the nearest passages all the same" });
    weak.onclick = () => { weak.remove(); $("hits").replaceChildren(...items); };
    said.append(weak);
    return;
  } else {
    said.append(node("p", { textContent: "Nothing was found. A filter may leave out too much." }));
  }
  $("hits").replaceChildren(...items);
}

function hitItem(hit, index) {
  const title = node("button", { textContent: hit.title });
  title.onclick = () => openPassage(hit, hit.sentences);
  const item = node("li", { id: `hit-${index + 1}` },
    node("h3", {}, node("span", { className: "number", textContent: index + 1 }), title),
    meta(hit), marked(hit.text, hit.sentences, 150), original(hit, node("a")));
  for (const other of hit.also) {
    const same = node("button", { className: "cite", textContent: other.title });
    same.onclick = () => openPassage(other, []);
    item.append(node("p", { className: "quiet" }, "The same in", same));
  }
  return item;
}

function meta(hit) {
  const parts = [node("span", { className: `kind ${hit.kind}`, textContent: KINDS[hit.kind] })];
  const when = hit.date && new Date(hit.date * 1000).toISOString().slice(0, 10);
  const where = hit.kind === "mail" ? hit.folder : `${hit.folder || hit.site}${hit.place ? `, ${hit.place}` : ""}`;
  if (when) parts.push(node("span", { className: "date", textContent: when }));
  for (const text of [hit.sender, where]) if (text) parts.push(node("span", { textContent: text }));
  return node("p", { className: "meta" }, ...parts);
}

function marked(text, sentences, before = Infinity) {
  const shown = node("p", { className: "text" });
  let position = 0;
  for (const sentence of sentences) {
    const start = text.indexOf(sentence, position);
    if (start < 0) continue;
    shown.append(text.slice(position, start), node("mark", { textContent: sentence }));
    position = start + sentence.length;
  }
  // In the list a passage is cut short: it begins a little before what answers.
  const lead = position ? shown.firstChild : null;
  if (lead && lead.length > 2 * before) lead.data = `… ${lead.data.slice(-before)}`;
  shown.append(text.slice(position));
  return shown;
}

function original(hit, link) {
  // Nothing but a file of this server or a page of the web is opened, and only by the person's click.
  const allowed = /^(https?:\/\/|original\/\d)/.test(hit.original);
  link.textContent = hit.kind === "page" ? `Open ${hit.site} on the web` : "Open the original";
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  if (allowed) link.href = hit.original;
  link.title = hit.address;
  return link;
}

function cite(number) {
  const button = node("button", { className: "cite", textContent: number, title: found[number - 1]?.title ?? "" });
  button.onclick = () => {
    for (const item of $("hits").children) item.classList.toggle("cited", item.id === `hit-${number}`);
    $(`hit-${number}`)?.scrollIntoView({ behavior: "smooth", block: "nearest" });
  };
  return button;
}

function showSentence({ sentence, sources }) {
  const line = node("p", { className: "sentence" }, sentence, ...sources.map(cite));
  if (!sources.length) {
    line.classList.add("unsupported");
    line.append(" (not in the passages)");
  }
  const cursor = $("answer").querySelector(".writing");
  cursor ? cursor.before(line) : $("answer").append(line);
}

function openPassage(hit, sentences) {
  $("passage-title").textContent = hit.title;
  $("passage-meta").replaceChildren(...meta(hit).childNodes, node("span", { textContent: hit.address }));
  $("passage-text").replaceChildren(...marked(hit.text, sentences).childNodes);
  original(hit, $("passage-original"));
  $("passage").showModal();
}

// Sources and progress

async function loadState(details = false) {
  clearTimeout(polling);
  try {
    const state = await (await api(`api/state?units=${details ? 200 : 0}`)).json();
    showState(state);
    if (details) showCoverage(state);
    polling = setTimeout(() => loadState(state.busy && !$("sources").hidden), state.busy ? 500 : 15000);
  } catch (error) {
    $("status").className = "bad";
    $("status").textContent = "The server has ended.";
  }
}

function showState({ busy, progress, error, coverage, generator }) {
  const total = (name) => coverage.reduce((sum, each) => sum + each[name], 0);
  const rate = progress && progress.done / Math.max(progress.seconds, 0.001);
  const status = $("status");
  status.dataset.generator = generator;
  status.className = error ? "bad" : "";
  status.textContent = error ? error
    : progress ? `${progress.step} ${progress.done} of ${progress.total}, ${rate.toFixed(0)}/s, ${Math.ceil(progress.seconds_left)} s left`
    : busy ? "Looking for changes"
    : coverage.length ? `${total("documents")} documents, ${total("passages")} passages` : "No sources yet";
  $("bar").hidden = !busy;
  if (progress) $("bar").value = progress.done / progress.total; else $("bar").removeAttribute("value");
  if (!coverage.length && !asked) $("hint").textContent = "Nothing is indexed yet: choose what to search under Sources.";
}

function showCoverage({ coverage }) {
  const open = new Set([...document.querySelectorAll("#coverage details[open]")].map((each) => each.dataset.name));
  $("coverage").replaceChildren(...coverage.map((each) => {
    const leave = node("button", { textContent: "Leave out" });
    leave.onclick = async () => {
      if (!confirm(`Remove ${each.source} from the index? The files stay.`)) return;
      await api("api/forget", { name: each.source });
      loadState(true);
    };
    const states = Object.entries(each.states).map(([name, count]) => `${count} ${name}`).join(", ");
    const card = node("div", { className: "source" }, node("h3", {}, node("span", { textContent: each.source }), leave),
      node("p", { className: "quiet", textContent: `${states || "not read yet"}; ${each.documents} documents, ${each.passages} passages` }));
    if (each.units.length) {
      const list = node("details", { open: open.has(each.source) }, node("summary", { textContent: `Left out or remarkable${each.units.length === 200 ? ", the first 200" : `: ${each.units.length}`}` }),
        node("ul", {}, ...each.units.map(({ unit, state, reason }) =>
          node("li", { className: state, textContent: `${state}: ${unit}${reason ? `: ${reason}` : ""}` }))));
      list.dataset.name = each.source;
      card.append(list);
    }
    return card;
  }));
  if (!coverage.length) $("coverage").append(node("p", { className: "quiet", textContent: "Nothing yet." }));
}

$("update").onclick = async () => { await api("api/update", {}); loadState(true); };
$("report").onclick = async () => {
  const { coverage } = await (await api("api/state?units=-1")).json();
  const saved = new Blob([JSON.stringify(coverage, null, 1)], { type: "application/json" });
  const link = node("a", { href: URL.createObjectURL(saved), download: "coverage.json" });
  link.click();
  URL.revokeObjectURL(link.href);
};
$("add").elements.kind.onchange = (event) => { $("pages-field").hidden = event.target.value !== "history"; };
$("add").onsubmit = async (event) => {
  event.preventDefault();
  $("add-error").textContent = "";
  try {
    await api("api/add", Object.fromEntries(new FormData($("add"))));
    $("add").elements.path.value = "";
    loadState(true);
  } catch (error) {
    $("add-error").textContent = error.message;
  }
};

loadState();
