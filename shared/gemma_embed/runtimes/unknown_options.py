"""Options that a class does not take: the error says where they belong."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import NoReturn

from gemma_embed.errors import ConfigurationError

_EMBEDDER = ("dimensions", "query_task", "document_task", "overlong", "store", "progress")
_PROMPTS = "prompts are built in; choose them with query_task= and document_task="
_BATCHES = "batches are made by length; leave it out"
# Names of other packages' options, and the option that is meant.
_OTHER_NAMES = {
    "model_name": "model=",
    "model_id": "model=",
    "model_name_or_path": "model=",
    "repo_id": "model=",
    "truncate_dim": "dimensions=",
    "dimension": "dimensions=",
    "output_dimensionality": "dimensions=",
    "truncate": "overlong='truncate'",
    "max_length": "overlong='truncate' or 'split'",
    "show_progress": "progress=True",
    "show_progress_bar": "progress=True",
    "torch_dtype": "dtype=",
    "local_files_only": "offline=True",
    "load_in_8bit": "precision='int8'",
    "api_key": "headers=",
    "base_url": "host=",
    "request_timeout": "timeout=",
}
# Options that no option here replaces, and what to do instead.
_ELSEWHERE = {
    "model_kwargs": "give device=, dtype= or revision= to TransformersRuntime directly",
    "encode_kwargs": "prompts are built in and vectors have norm 1; leave it out, or choose "
    "prompts with query_task= and document_task=",
    "query_encode_kwargs": _PROMPTS,
    "prompts": _PROMPTS,
    "prompt_name": _PROMPTS,
    "default_prompt_name": _PROMPTS,
    "query_instruction": _PROMPTS,
    "text_instruction": _PROMPTS,
    "embed_instruction": _PROMPTS,
    "query_prefix": _PROMPTS,
    "document_prefix": _PROMPTS,
    "task": "say query_task= or document_task= where vectors are asked for, or call for_task()",
    "normalize": "vectors are always of norm 1; leave it out",
    "normalize_embeddings": "vectors are always of norm 1; leave it out",
    "batch_size": _BATCHES,
    "chunk_size": _BATCHES,
    "embed_batch_size": _BATCHES,
    "multi_process": "one process computes; leave it out",
    "parallel": "one process computes; leave it out",
    "cache_folder": "the environment variable HF_HOME names the folder of downloads",
    "cache_dir": "the environment variable HF_HOME names the folder of downloads; that of graphs "
    "is an option of OnnxRuntime",
    "ollama_additional_kwargs": "give keep_alive= and the like to OllamaRuntime directly",
    "client_kwargs": "give headers= and timeout= to OllamaRuntime directly",
    "num_ctx": "the context is the model's; leave it out",
    "trust_remote_code": "code in a model is never run; leave it out",
    "token": "the environment variable HF_TOKEN holds the hub's token",  # nosec B105 - advice
    "backend": "say runtime='onnx'",
}


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
    advice = _Advice(where, own, runtimes, instead or {})
    said = "; ".join(f"{name}: {advice.on(name)}" for name in map(str, options))
    raise ConfigurationError(f"{where} does not take {', '.join(map(str, options))} ({said})")


class _Advice:
    def __init__(
        self,
        where: str,
        own: Collection[str],
        runtimes: Mapping[str, Collection[str]],
        instead: Mapping[str, str],
    ) -> None:
        self._where = where
        self._own = own
        self._runtimes = runtimes
        self._instead = instead

    def on(self, name: str) -> str:
        said = self._known(name)
        if said is not None:
            return said
        near = get_close_matches(name, self._own, 1, 0.7)
        if near:
            return f"did you mean {near[0]}=?"
        names = {*_EMBEDDER, *_OTHER_NAMES, *_ELSEWHERE}.union(*self._runtimes.values())
        near = get_close_matches(name, sorted(names), 1, 0.8)
        return (
            f"did you mean {near[0]}=? {self._known(near[0])}" if near else "unknown; leave it out"
        )

    def _known(self, name: str) -> str | None:
        call = _OTHER_NAMES.get(name, f"{name}=")
        option, _, value = call.partition("=")
        if name in self._instead or option in self._instead:
            return self._instead.get(name) or self._instead[option]
        if name in _ELSEWHERE:
            return _ELSEWHERE[name]
        if option == "model" or option in self._own:
            return f"say {call}"
        kinds = [kind for kind, taken in self._runtimes.items() if option in taken]
        if kinds:
            calls = " or ".join(f"{kind}({option}={value or '...'})" for kind in kinds)
            return f"pass {calls} as the runtime"
        if option not in _EMBEDDER:
            return None
        takers = "Embedder or GemmaEmbeddings"
        if option != "progress":
            takers = "Embedder, GemmaEmbeddings or GemmaEmbedding"
        return f"give {'it' if option == name else call} to {takers}"
