// Vectors of prompted texts by Transformers.js, in Node. Reads {library, models, model, dtype, texts}
// from the standard input as JSON; writes {ids, vectors}.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const job = JSON.parse(readFileSync(0, "utf-8"));
const { AutoModel, AutoTokenizer, env } = await import(pathToFileURL(job.library));
env.allowRemoteModels = false;
env.localModelPath = job.models;
const tokenizer = await AutoTokenizer.from_pretrained(job.model);
const model = await AutoModel.from_pretrained(job.model, { dtype: job.dtype });
const ids = job.texts.map((text) => tokenizer.encode(text));
const inputs = tokenizer(job.texts, { padding: true });
const { sentence_embedding } = await model(inputs);
process.stdout.write(JSON.stringify({ ids, vectors: sentence_embedding.tolist() }));
