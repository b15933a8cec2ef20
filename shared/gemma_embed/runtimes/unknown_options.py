"""Options that a class does not take: the error says where they belong."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import NoReturn

from gemma_embed.errors import ConfigurationError

_EMBEDDER = ("dimensions", "query_task", "document_task", "overlong", "store", "progress")
_ADAPTERS = ", GemmaEmbeddings or GemmaEmbedding"
# Names of other packages' options, and the option that is meant.
_OTHER_NAMES = {
    **dict.fromkeys(("model_name", "model_id", "model_name_or_path", "repo_id"), "model="),
    **dict.fromkeys(("truncate_dim", "dimension", "output_dimensionality"), "dimensions="),
    **dict.fromkeys(("show_progress", "show_progress_bar"), "progress=True"),
    "truncate": "overlong='truncate'",
    "max_length": "overlong='truncate' or 'split'",
    "torch_dtype": "dtype=",
    "local_files_only": "offline=True",
    "load_in_8bit": "precision='int8'",
    "api_key": "headers=",
    "base_url": "host=",
    "request_timeout": "timeout=",
}
# What to do instead of options that no option here replaces.
_ADVICE = {
    "prompts are built in; choose them with query_task= and document_task=": "prompts prompt_name "
    "default_prompt_name query_encode_kwargs query_instruction text_instruction embed_instruction "
    "query_prefix document_prefix",
    "prompts are built in and vectors have norm 1; leave it out, or choose prompts with "
    "query_task= and document_task=": "encode_kwargs",
    "say query_task= or document_task= where vectors are wanted, or call for_task()": "task",
    "vectors are always of norm 1; leave it out": "normalize normalize_embeddings",
    "batches are made by length; leave it out": "batch_size chunk_size embed_batch_size",
    "one process computes; leave it out": "multi_process parallel",
    "the context is the model's; leave it out": "num_ctx",
    "give device=, dtype= or revision= to TransformersRuntime directly": "model_kwargs",
    "give headers= and timeout= to OllamaRuntime directly": "client_kwargs",
    "give keep_alive= and the like to OllamaRuntime directly": "ollama_additional_kwargs",
    "the environment variable HF_HOME names the folder of downloads; that of graphs is cache_dir= "
    "of OnnxRuntime": "cache_folder cache_dir",
    "code in a model is never run; leave it out": "trust_remote_code",
    "say runtime='onnx'": "backend",
    "the environment variable HF_TOKEN holds the hub's token": "token",
}
_ELSEWHERE = {name: advice for advice, names in _ADVICE.items() for name in names.split()}


def options_of(kind: type) -> Collection[str]:
    """Return the names of a class's constructor arguments."""
    parameters = inspect.signature(kind).parameters.values()
    return [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]


def reject_unknown(
    options: Mapping[str, object],
    where: str,
    kind: type | None = None,
    instead: Mapping[str, str] | None = None,
) -> NoReturn:
    """Say where options belong that a class does not take.

    Args:
        options: By name, at least one; their values are never shown.
        where: The class, as the user calls it.
        kind: The class itself; None for the runtime of this name.
        instead: What to do in place of an option, where this class has a way of its own.

    Raises:
        ConfigurationError: Always.
    """
    # Here, since the runtimes' modules import this one.
    from gemma_embed.runtimes.named import RUNTIMES

    runtimes = {each.__name__: options_of(each) for each in RUNTIMES.values()}
    own = runtimes.get(where, ()) if kind is None else options_of(kind)
    ways = dict(instead or {})

    def advice(name: str) -> str | None:
        call = _OTHER_NAMES.get(name, f"{name}=")
        option, _, value = call.partition("=")
        takers = [runtime for runtime, taken in runtimes.items() if option in taken]
        if name in ways or option in ways:
            return ways.get(name) or ways[option]
        if option == "model" or option in own:
            return f"say {call}"
        if name in _ELSEWHERE:
            return _ELSEWHERE[name]
        if takers:
            calls = " or ".join(f"{runtime}({option}={value or '...'})" for runtime in takers)
            return f"pass {calls} as the runtime"
        if option in _EMBEDDER:
            also = " or GemmaEmbeddings" if option == "progress" else _ADAPTERS
            return f"give {'it' if option == name else call} to Embedder{also}"
        return None

    names = sorted({*own, *_EMBEDDER, *_OTHER_NAMES, *_ELSEWHERE}.union(*runtimes.values()))
    refused = list(map(str, options))
    said = []
    for name in refused:
        known = advice(name)
        near = [] if known else get_close_matches(name, names, 1, 0.75)
        if near:
            known = f"did you mean {near[0]}=? {advice(near[0])}"
        said.append(f"{name}: {known or 'unknown; leave it out'}")
    raise ConfigurationError(f"{where} does not take {', '.join(refused)} ({'; '.join(said)})")
