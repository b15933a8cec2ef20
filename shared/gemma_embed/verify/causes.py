"""What can be wrong with a runtime's vectors, and what to do about each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_PROMPTS = (
    "send each text with its own prompt, as Embedder does, and let neither a framework's class nor "
    "the server add or remove one"
)
_POOLING = (
    "pool the mean of all tokens, prompt, BOS and EOS included (llama-server: --pooling mean; "
    "1_Pooling/config.json: pooling_mode_mean_tokens)"
)
_CONVERT = (
    "write the model again with both Dense layers (gemma-embed export gguf), or take a GGUF that "
    "has them"
)
_TOKENS = (
    "have the tokenizer add one BOS and one EOS (GGUF: tokenizer.ggml.add_bos_token and "
    "add_eos_token, both true); send text, not tokens of your own"
)
_ENGINE = (
    "update the engine (transformers 4.57, Ollama 0.30, a llama.cpp of the same age), and restore "
    "config.json or the GGUF's keys to the original's"
)
_BATCHES = (
    "give the server a micro-batch as long as its context (llama-server: -ub 2048 -b 2048), and "
    "update it"
)
_PADDING = "mask padding in attention and pooling, or send texts one by one; update the engine"
_TEXT = "send texts unchanged: remove the step that alters them before the tokenizer"


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong.

    Attributes:
        what: What it is.
        remedy: What to change.
    """

    what: str
    remedy: str


class Found:
    """What both verdicts say of their causes: names in ``CAUSES``."""

    causes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.causes

    @property
    def cause(self) -> str:
        """The first cause; ``ok`` if there is none."""
        return self.causes[0] if self.causes else "ok"

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values, each cause with what it is and its remedy."""
        told = [{"name": name, **asdict(CAUSES[name])} for name in self.causes]
        return {"ok": self.ok, **vars(self), "causes": told}

    def lines(self) -> list[str]:
        """Return a line for each cause, and one for its remedy."""
        return [
            line
            for name in self.causes
            for line in (f"cause: {name} ({CAUSES[name].what})", f"remedy: {CAUSES[name].remedy}")
        ]


CAUSES: dict[str, Cause] = {
    # Seen in the numbers themselves.
    "not_finite": Cause(
        "NaN, infinity, all zeros, or no numbers",
        "compute in float32 or bfloat16: this model overflows float16; on a server take another "
        "quantisation, or compute on the CPU (Ollama: num_gpu 0)",
    ),
    "rows": Cause(
        "not exactly one vector for each text", "update the runtime, or report it to its author"
    ),
    "too_short_context": Cause(
        "refuses a text that is shorter than the model's context",
        "raise the context (Ollama: num_ctx and num_batch; llama-server: -c and -ub; a checkpoint: "
        "max_seq_length)",
    ),
    "width": Cause(
        "vectors of a width that this model does not have", "name the right model on the server"
    ),
    "no_second_dense": Cause("the second Dense layer is missing", _CONVERT),
    "not_normalised": Cause(
        "vectors are not of length 1",
        "divide each by its length: Embedder does, other clients of this runtime have to",
    ),
    "cut": Cause(
        "vectors are cut", "ask for the full width: Embedder cuts by itself (dimensions=)"
    ),
    "cut_not_normalised": Cause(
        "vectors were cut and not normalised afterwards",
        "divide each by its length after the cut: cosine is right without it, inner product is not",
    ),
    # Seen between calls.
    "not_repeatable": Cause(
        "one text has other vectors from call to call",
        "compute deterministically; update the engine",
    ),
    "order": Cause(
        "vectors of a list come in another order than its texts",
        "sort an answer by its index before it is used",
    ),
    "batch": Cause("a text in a list has another vector than alone", _PADDING),
    # Seen by golden values, under these names; a variant has a name with a slash.
    "no_dense": Cause("the Dense layers are missing", _CONVERT),
    "pooling_first_token": Cause("the first token is pooled", _POOLING),
    "pooling_last_token": Cause("the last token is pooled", _POOLING),
    "pooling_max": Cause("the largest numbers are pooled, not their mean", _POOLING),
    "pooling_without_special_tokens": Cause("BOS and EOS are left out of the mean", _POOLING),
    "pooling_without_prompt": Cause("the prompt is left out of the mean", _POOLING),
    "pooling_last_micro_batch": Cause(
        "of a long text only the last micro-batch is pooled", _BATCHES
    ),
    "padding_read": Cause(
        "padding is read or pooled",
        _PADDING,
    ),
    "no_prompt": Cause("no prompt before any text", _PROMPTS),
    "doubled_prompt": Cause("the prompt is there twice", _PROMPTS),
    "query_prompt_on_documents": Cause("documents have the prompt of queries", _PROMPTS),
    "document_prompt_on_queries": Cause("queries have the prompt of documents", _PROMPTS),
    "prompts_swapped": Cause(
        "queries have the prompt of documents, and documents that of queries",
        _PROMPTS,
    ),
    "no_prompt_on_queries": Cause("no prompt before queries", _PROMPTS),
    "no_prompt_on_documents": Cause("no prompt before documents", _PROMPTS),
    "similarity_prompt": Cause(
        "queries and documents have the prompt of sentence similarity",
        _PROMPTS,
    ),
    "foreign_prompts": Cause("the prompts are another model's (query:, passage:)", _PROMPTS),
    "title_dropped": Cause(
        "titles do not reach the model",
        "put the title into the document prompt: titles= of Embedder and GemmaEmbeddings, "
        "GemmaTitles in LlamaIndex",
    ),
    "lowercase": Cause("texts are lowercased", _TEXT),
    "whitespace_collapsed": Cause("white space is collapsed", _TEXT),
    "newlines_to_spaces": Cause("newlines become spaces", _TEXT),
    "text_stripped": Cause("white space at the ends of texts is lost", _TEXT),
    "prompt_stripped": Cause(
        "the space at the end of the prompts is lost",
        "keep it: `title: none | text: ` and the others end with a space; quote them in YAML",
    ),
    "space_before": Cause(
        "a space is put before every text, as by `ollama create` from a checkpoint's folder",
        "write the folder with gemma-embed export gguf and create the model from that file (GGUF: "
        "tokenizer.ggml.add_space_prefix = false)",
    ),
    "no_bos": Cause("BOS is missing", _TOKENS),
    "no_eos": Cause("EOS is missing", _TOKENS),
    "no_bos_no_eos": Cause("BOS and EOS are missing", _TOKENS),
    "two_bos": Cause("BOS is there twice", _TOKENS),
    "two_eos": Cause("EOS is there twice", _TOKENS),
    "truncated": Cause(
        "long texts are cut before the model reads them",
        "raise the limit to the model's context (max_seq_length; Ollama: num_ctx and num_batch; "
        "llama-server: -c and -ub)",
    ),
    "last_micro_batch": Cause("of a long text only the last micro-batch is read", _BATCHES),
    "micro_batches_apart": Cause(
        "the micro-batches of a long text do not see each other", _BATCHES
    ),
    "causal": Cause("attention is causal", _ENGINE),
    "causal_last_token": Cause("attention is causal, and the last token is pooled", _ENGINE),
    "window_too_narrow": Cause(
        "the sliding window is too narrow, as in a checkpoint that transformers < 5.16 saved again",
        "set sliding_window to 512 in config.json (GGUF: attention.sliding_window)",
    ),
    "window_too_wide": Cause("the sliding window is too wide or absent", _ENGINE),
    "rope_all_global": Cause(
        "the local layers have the rotary base of the global ones",
        _ENGINE,
    ),
    "rope_all_local": Cause("the global layers have the rotary base of the local ones", _ENGINE),
    "embeddings_unscaled": Cause("token embeddings are not scaled", _ENGINE),
    "norm_without_one": Cause("the norms' weights lack the 1 that this architecture adds", _ENGINE),
    "attention_scale": Cause("attention scores are scaled by the wrong size", _ENGINE),
    # Of collections only.
    "other_task": Cause("documents have another task's prompt", _PROMPTS),
    "other_numbers": Cause(
        "the input is the right one, and the numbers are not: 4 bits, or a fault of the runtime",
        "verify the runtime that filled it, and embed the documents again",
    ),
    # Nothing known.
    "later_numbers": Cause(
        "the first 64 numbers of the vectors are right, and later ones are not",
        "update the runtime, or report it to its author",
    ),
    "several": Cause(
        "several faults at once, or a fine-tune of the model",
        "a fine-tune has vectors of its own, which this cannot judge; otherwise compare weights, "
        "tokenizer and prompts with the original's",
    ),
    "another_model": Cause("another model", "name the right model on the server"),
    "no_golden_values": Cause(
        "there are no golden values for this model, so only what is the same for all was checked",
        "make them from its weights: python benchmarks/verify.py --golden FOLDER",
    ),
}
