// Embeds questions with the exported model and compares them with the exported vectors.
import { AutoModel, AutoTokenizer, env } from "./lib/transformers.min.js";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL("./", location.href).pathname;
// The browser's HTTP cache is enough here, and a new export is seen at once.
env.useBrowserCache = false;
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = {
  mjs: new URL("./lib/ort-wasm-simd-threaded.asyncify.mjs", location.href).href,
  wasm: new URL("./lib/ort-wasm-simd-threaded.asyncify.wasm", location.href).href,
};

const form = document.querySelector("form");
const status = document.querySelector("#status");
const list = document.querySelector("ol");

async function load() {
  const started = performance.now();
  const [index, bytes] = await Promise.all([
    fetch("index.json").then((answer) => answer.json()),
    fetch("vectors.bin").then((answer) => answer.arrayBuffer()),
  ]);
  const vectors = index.vectors === "int8" ? new Int8Array(bytes) : new Float32Array(bytes);
  if (vectors.length !== index.passages.length * index.dimensions) {
    throw new Error("vectors.bin does not belong to index.json; run export.py again");
  }
  const [tokenizer, model] = await Promise.all([
    AutoTokenizer.from_pretrained("model"),
    AutoModel.from_pretrained("model", { dtype: index.dtype, device: "wasm" }),
  ]);
  const seconds = (performance.now() - started) / 1000;
  return { index, vectors, tokenizer, model, seconds };
}

async function embed({ index, tokenizer, model }, question) {
  const { sentence_embedding } = await model(tokenizer([index.prompt + question]));
  const vector = sentence_embedding.data.slice(0, index.dimensions);
  const norm = Math.hypot(...vector);
  return vector.map((number) => number / norm);
}

function nearest({ index, vectors }, question, count) {
  const scores = index.passages.map((passage, row) => {
    let sum = 0;
    for (let i = 0; i < index.dimensions; i++) {
      sum += question[i] * vectors[row * index.dimensions + i];
    }
    return { ...passage, score: sum * index.scale };
  });
  return scores.sort((a, b) => b.score - a.score).slice(0, count);
}

function show(found) {
  list.replaceChildren(
    ...found.map(({ title, source, text, score }) => {
      const item = document.createElement("li");
      const heading = document.createElement("h2");
      heading.textContent = title;
      const origin = document.createElement("p");
      origin.className = "origin";
      origin.textContent = `${source} · ${score.toFixed(3)}`;
      const body = document.createElement("p");
      body.textContent = text.length > 280 ? `${text.slice(0, 280)}…` : text;
      item.append(heading, origin, body);
      return item;
    }),
  );
}

try {
  const page = await load();
  const passages = page.index.passages.length;
  status.textContent = `${page.index.model}, ${page.index.dtype}: loaded in ${page.seconds.toFixed(1)} s. ${passages} passages.`;
  form.querySelector("fieldset").disabled = false;
  form.question.focus();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const started = performance.now();
    const question = await embed(page, form.question.value);
    show(nearest(page, question, 5));
    status.textContent = `Searched ${passages} passages in ${Math.round(performance.now() - started)} ms, in this browser.`;
    document.body.dataset.vector = JSON.stringify(Array.from(question));
  });
  document.body.dataset.ready = page.seconds;
} catch (error) {
  status.textContent = `The search cannot start: ${error.message}`;
  document.body.dataset.failed = error.stack;
}
