"use strict";
// Text of others reaches the page through textContent alone; the server's policy forbids the rest.

const $ = (id) => document.getElementById(id);
const KINDS = { file: "File", mail: "Mail", page: "Page" };
let asked = "", found = [], writes = false, running = null, polling = 0;

function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function api(path, body, signal) {
  const options = body && { method: "POST", body: JSON.stringify(body), signal };
  const answer = await fetch(`api/${path}`, options);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

// What was left empty is not sent.
const filled = (form) => Object.fromEntries([...new FormData(form)].filter(([, value]) => value));

$("views").onchange = ({ target }) => {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== target.value;
  if (target.value === "map") loadMap();
  loadState();
};

// Questions

$("ask").onsubmit = async (event) => {
  event.preventDefault();
  running?.abort();
  const { signal } = (running = new AbortController());
  asked = $("question").value;
  $("hint").hidden = true;
  $("results").hidden = false;
  $("passages").hidden = true;
  $("answer").replaceChildren();
  say("Searching ", "quiet writing", node("progress"));
  try {
    const answer = await api("ask", filled($("ask")), signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (waiting + part.value).split("\n");
      waiting = lines.pop();
      for (const line of lines) take(JSON.parse(line));
    }
  } catch (error) {
    if (!signal.aborted) take({ error: error.message });
  }
};

function take(part) {
  if (part.hits) showHits(part);
  if (part.sentence) {
    const marks = part.sources.length ? part.sources.map(cite) : [" (not in the passages)"];
    say(part.sentence, part.sources.length ? "sentence" : "sentence quiet", ...marks);
  }
  if (part.error) say(part.error, "failed");
  if (part.done || part.error) $("answer").querySelector(".writing")?.remove();
}

function say(text, className, ...more) {
  $("answer").append(node("p", { className }, text, ...more));
}

function showHits({ hits, answerable, fresh }) {
  found = hits;
  $("hits").replaceChildren(...hits.map(hitItem));
  $("passages").open = answerable;
  $("passages").hidden = !hits.length;
  $("answer").replaceChildren(node("h2", { textContent: answerable ? "Answer" : "Not in your documents" }));
  if (!fresh) say("The index is still being updated: this is what is in it so far.", "quiet");
  if (answerable && writes) {
    say("Writing ", "quiet writing", node("progress"));
  } else if (answerable) {
    say(hits[0].sentences.join(" "), "sentence", cite(1));
    say("Quoted, since no model writes answers here.", "quiet");
  } else {
    say(hits.length ? "Nothing in the index says more to this than to any other question."
      : "Nothing was found. A filter may leave out too much.");
  }
}

function hitItem(hit, index) {
  const title = node("button", { textContent: hit.title, onclick: () => openPassage(hit) });
  const item = node("li", { id: `hit-${index + 1}`, className: "card" },
    node("h3", {}, node("span", { textContent: index + 1 }), title), ...described(hit, 150));
  for (const other of hit.also) {
    const same = node("button", { textContent: other.title, onclick: () => openPassage(other) });
    item.append(node("p", { className: "quiet" }, "The same in ", same));
  }
  return item;
}

function described(hit, before = Infinity) {
  // In the list a passage is cut short: it begins a little before what answers.
  const [first, ...others] = marked(hit.text, hit.sentences ?? []);
  const lead = others.length && first.length > 2 * before ? `… ${first.slice(-before)}` : first;
  const where = hit.kind === "mail" ? hit.folder : [hit.folder || hit.site, hit.place].filter(Boolean).join(", ");
  const facts = [hit.date.slice(0, 10), hit.sender, where].filter(Boolean).map((fact) => ` · ${fact}`);
  const link = node("a", { textContent: hit.kind === "page" ? `Open ${hit.site} on the web` : "Open the original",
    title: hit.address, target: "_blank", rel: "noopener noreferrer" });
  // Nothing but a file of this server or a page of the web is opened, and only by the person's click.
  if (/^(https?:\/\/|original\/\d)/.test(hit.original)) link.href = hit.original;
  return [
    node("p", { className: "quiet" }, node("span", { className: `kind ${hit.kind}`, textContent: KINDS[hit.kind] }), ...facts),
    node("p", { className: "text" }, lead, ...others), link];
}

function marked(text, sentences) {
  // A sentence has one space where the passage may have the end of a line.
  const wanted = sentences.map((each) => each.replace(/[^\p{L}\p{N}\s]/gu, "\\$&").replaceAll(" ", "\\s+"));
  const parts = wanted.length ? text.split(RegExp(`(${wanted.join("|")})`)) : [text];
  return parts.map((part, row) => row % 2 ? node("mark", { textContent: part }) : part);
}

function cite(number) {
  return node("button", { textContent: number, title: found[number - 1].title, className: "cite", onclick: () => {
    $("passages").open = true;
    for (const item of $("hits").children) item.classList.toggle("cited", item.id === `hit-${number}`);
    $(`hit-${number}`).scrollIntoView({ behavior: "smooth", block: "nearest" });
  } });
}

function openPassage(hit) {
  $("passage-title").textContent = hit.title;
  $("passage-body").replaceChildren(...described(hit));
  $("passage").showModal();
}

// Sources and progress

async function loadState() {
  clearTimeout(polling);
  try {
    const state = await (await api(`state?units=${$("sources").hidden ? 0 : 200}`)).json();
    showState(state);
    showCoverage(state);
    polling = setTimeout(loadState, state.busy ? 500 : 15000);
  } catch {
    $("status").textContent = "The server has ended.";
  }
}

function showState({ busy, progress, error, coverage, generator }) {
  writes = generator;
  const total = (name) => coverage.reduce((sum, each) => sum + each[name], 0);
  const rate = progress && progress.done / Math.max(progress.seconds, 0.001);
  $("status").textContent = error ? error
    : progress ? `${progress.step} ${progress.done} of ${progress.total}, ${rate.toFixed(0)}/s, ${Math.ceil((progress.total - progress.done) / rate)} s left`
    : busy ? "Looking for changes"
    : coverage.length ? `${total("documents")} documents, ${total("passages")} passages` : "No sources yet";
  $("bar").hidden = !busy;
  if (progress) $("bar").value = progress.done / progress.total; else $("bar").removeAttribute("value");
  if (!coverage.length) $("hint").textContent = "Nothing is indexed yet: choose what to search under Sources.";
}

function showCoverage({ coverage }) {
  // Details that are open stay so while nothing changes.
  const told = JSON.stringify(coverage);
  if ($("coverage").dataset.told === told) return;
  $("coverage").dataset.told = told;
  $("coverage").replaceChildren(...coverage.map((each) => {
    const leave = node("button", { textContent: "Leave out", onclick: async () => {
      if (!confirm(`Remove ${each.source} from the index? The files stay.`)) return;
      await api("forget", { name: each.source });
      loadState();
    } });
    const states = Object.entries(each.states).map(([name, count]) => `${count} ${name}`).join(", ");
    const units = each.units.map(({ unit, state, reason }) => node("li", { className: state, textContent: `${state}: ${unit}: ${reason}` }));
    const list = node("details", { hidden: !units.length },
      node("summary", { textContent: `Left out or remarkable: ${units.length === 200 ? "the first 200" : units.length}` }),
      node("ul", {}, ...units));
    return node("div", { className: "card" }, leave, node("h3", { textContent: each.source }),
      node("p", { className: "quiet", textContent: `${states || "not read yet"}; ${each.documents} documents, ${each.passages} passages` }), list);
  }));
}

$("add").onsubmit = async (event) => {
  event.preventDefault();
  try {
    await api("add", filled($("add")));
    $("add").reset();
    $("add-error").textContent = "";
    loadState();
  } catch (error) {
    $("add-error").textContent = error.message;
  }
};

loadState();
