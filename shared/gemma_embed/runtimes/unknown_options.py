"""Options that a class does not take: the error says where they belong."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import NoReturn

from gemma_embed.errors import ConfigurationError

_EMBEDDER = ("dimensions", "query_task", "document_task", "overlong", "store", "progress")
_PROMPTS = "prompts are built in; choose them with query_task= and document_task="
_BATCHES = "batches are made by length; leave it out"
# Names of other packages' options, and what to do here instead.
_ELSEWHERE = {
    "model_name": "say model=",
    "model_id": "say model=",
    "model_name_or_path": "say model=",
    "model_kwargs": "give device=, dtype= or revision= to TransformersRuntime",
    "encode_kwargs": _PROMPTS,
    "query_encode_kwargs": _PROMPTS,
    "prompts": _PROMPTS,
    "prompt_name": _PROMPTS,
    "default_prompt_name": _PROMPTS,
    "query_instruction": _PROMPTS,
    "text_instruction": _PROMPTS,
    "embed_instruction": _PROMPTS,
    "query_prefix": _PROMPTS,
    "document_prefix": _PROMPTS,
    "normalize": "vectors are always of norm 1; leave it out",
    "normalize_embeddings": "vectors are always of norm 1; leave it out",
    "truncate_dim": "say dimensions=",
    "truncate": "say overlong='truncate'",
    "max_length": "say overlong='truncate' or 'split'",
    "show_progress": "say progress=True",
    "show_progress_bar": "say progress=True",
    "batch_size": _BATCHES,
    "chunk_size": _BATCHES,
    "embed_batch_size": _BATCHES,
    "multi_process": "one process computes; leave it out",
    "parallel": "one process computes; leave it out",
    "cache_folder": "the environment variable HF_HOME names the folder of downloads",
    "cache_dir": "the environment variable HF_HOME names the folder of downloads",
    "base_url": "pass OllamaRuntime(host=...) as the runtime",
    "request_timeout": "pass OllamaRuntime(timeout=...) as the runtime",
    "ollama_additional_kwargs": "pass OllamaRuntime(keep_alive=..., ...) as the runtime",
    "client_kwargs": "pass OllamaRuntime(headers=..., timeout=...) as the runtime",
    "num_ctx": "the context is the model's; leave it out",
    "trust_remote_code": "code in a model is never run; leave it out",
    "token": "the environment variable HF_TOKEN holds the hub's token",
    "backend": "say runtime='onnx'",
    "load_in_8bit": "pass OnnxRuntime(precision='int8') as the runtime",
}


def options_of(kind: type) -> Collection[str]:
    """Return the names of a class's constructor arguments."""
    parameters = inspect.signature(kind).parameters.values()
    return [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]


def reject_unknown(options: Mapping[str, object], where: str) -> NoReturn:
    """Say where options belong that a class does not take.

    Args:
        options: By name, at least one; their values are never shown.
        where: The class, as the user calls it.

    Raises:
        ConfigurationError: Always.
    """
    said = "; ".join(f"{name}: {_advice(name)}" for name in map(str, options))
    raise ConfigurationError(f"{where} does not take {', '.join(map(str, options))} ({said})")


def _advice(name: str) -> str:
    # Here, since the runtimes' modules import this one.
    from gemma_embed.runtimes.named import RUNTIMES

    kinds = [kind.__name__ for kind in RUNTIMES.values() if name in options_of(kind)]
    if kinds:
        return f"pass {' or '.join(f'{kind}({name}=...)' for kind in kinds)} as the runtime"
    if name in _EMBEDDER:
        return "give it to Embedder, GemmaEmbeddings or GemmaEmbedding"
    return _ELSEWHERE.get(name, "unknown; leave it out")
