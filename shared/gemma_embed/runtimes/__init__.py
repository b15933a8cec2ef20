"""Runtimes: who computes the vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.runtimes.ollama import OllamaRuntime
from gemma_embed.runtimes.onnx import OnnxRuntime
from gemma_embed.runtimes.remote import EnvironmentVariable
from gemma_embed.runtimes.transformers import TransformersRuntime

__all__ = [
    "Batch",
    "EnvironmentVariable",
    "OllamaRuntime",
    "OnnxRuntime",
    "Runtime",
    "RuntimeName",
    "TooLong",
    "TransformersRuntime",
    "one_name",
    "open_runtime",
    "runtime_settings",
]

RuntimeName = Literal["transformers", "onnx", "ollama"]

_NAMED: dict[Any, type[TransformersRuntime] | type[OnnxRuntime] | type[OllamaRuntime]] = {
    "transformers": TransformersRuntime,
    "onnx": OnnxRuntime,
    "ollama": OllamaRuntime,
}


def open_runtime(
    runtime: RuntimeName | Mapping[str, Any] | Runtime, model: str | None = None
) -> Runtime:
    """Return a runtime object; nothing is loaded.

    Args:
        runtime: A runtime's name, for its defaults; what ``runtime_settings`` returned; or an
            object, which is returned as it is.
        model: What a runtime given by name loads; None for its default.

    Raises:
        ConfigurationError: If the name or a setting is unknown, or a model is given beside an
            object.
    """
    if isinstance(runtime, str):
        runtime = {"runtime": runtime, "model": model}
        model = None
    if model is not None:
        raise ConfigurationError(
            f"model={model!r} has no effect beside a runtime object; give it to the runtime"
        )
    if not isinstance(runtime, Mapping):
        return runtime
    settings = dict(runtime)
    name = settings.pop("runtime", None)
    if name not in _NAMED:
        names = " or ".join(map(repr, get_args(RuntimeName)))
        raise ConfigurationError(f"unknown runtime {name!r}; use {names}, or a runtime object")
    try:
        return _NAMED[name](**settings)
    except TypeError as error:
        raise ConfigurationError(
            f"settings that runtime {name!r} does not have: {error}"
        ) from error


def one_name(model: str | None, model_name: str | None) -> str | None:
    """Return the model's name from the two options that frameworks give it in.

    Raises:
        ConfigurationError: If both are given and differ.
    """
    if model is not None and model_name is not None and model != model_name:
        raise ConfigurationError(
            f"model={model!r} and model_name={model_name!r} are one option; give one of them"
        )
    return model if model is not None else model_name


def runtime_settings(runtime: Runtime) -> dict[str, Any]:
    """Return what ``open_runtime`` makes an equal runtime from: JSON values, no secrets.

    A runtime that is not of this package is written down under its class's name, which
    ``open_runtime`` refuses: pass the object again instead.
    """
    names: dict[type, str] = {kind: name for name, kind in _NAMED.items()}
    return {"runtime": names.get(type(runtime), type(runtime).__name__), **runtime.settings}
