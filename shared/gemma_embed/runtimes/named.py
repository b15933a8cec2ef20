"""Runtimes by name: the table, and objects made from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

from gemma_embed.errors import ConfigurationError
from gemma_embed.models import is_ollama_tag, model_of_repository
from gemma_embed.runtimes.base import Runtime
from gemma_embed.runtimes.gguf import GgufRuntime
from gemma_embed.runtimes.mlx import MlxRuntime
from gemma_embed.runtimes.ollama import OllamaRuntime
from gemma_embed.runtimes.onnx import OnnxRuntime
from gemma_embed.runtimes.openai import OpenAIRuntime
from gemma_embed.runtimes.transformers import TransformersRuntime
from gemma_embed.runtimes.unknown_options import options_of, reject_unknown

RuntimeName = Literal["transformers", "onnx", "gguf", "ollama", "openai", "mlx"]

RUNTIMES: dict[str, type[Any]] = {
    "transformers": TransformersRuntime,
    "onnx": OnnxRuntime,
    "gguf": GgufRuntime,
    "ollama": OllamaRuntime,
    "openai": OpenAIRuntime,
    "mlx": MlxRuntime,
}

_NEEDED = ("model", "identity", "prompts", "settings", "embed")


def open_runtime(
    runtime: RuntimeName | Mapping[str, Any] | Runtime, model: str | None = None
) -> Runtime:
    """Return a runtime object; nothing is loaded.

    Args:
        runtime: A runtime's name, for its defaults; what ``runtime_settings`` returned; or an
            object, which is returned as it is.
        model: What a runtime given by name loads; None for its default.

    Raises:
        ConfigurationError: If the name or a setting is unknown, the object is not a runtime, or a
            model is given as well as an object.
    """
    if isinstance(runtime, str):
        runtime = {"runtime": runtime} if model is None else {"runtime": runtime, "model": model}
    elif model is not None:
        raise ConfigurationError(
            f"model={model!r} has no effect together with a runtime object; give it to the runtime"
            + ("; a width is dimensions=" if isinstance(model, int) else "")
        )
    if not isinstance(runtime, Mapping):
        return _checked(runtime)
    settings = dict(runtime)
    name = settings.pop("runtime", None)
    if not isinstance(name, str) or name not in RUNTIMES:
        raise ConfigurationError(_unknown(name))
    kind = RUNTIMES[name]
    unknown = {key: value for key, value in settings.items() if key not in options_of(kind)}
    if unknown:
        reject_unknown(unknown, f"runtime {name!r}", kind)
    opened: Runtime = kind(**settings)
    return opened


def runtime_settings(runtime: Runtime) -> dict[str, Any]:
    """Return what ``open_runtime`` makes an equal runtime from: JSON values, no secrets.

    A runtime of another package is written down under its class's name, which ``open_runtime``
    refuses: pass the object again instead.
    """
    names = {kind: name for name, kind in RUNTIMES.items()}
    return {"runtime": names.get(type(runtime), type(runtime).__name__), **runtime.settings}


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


def _checked(runtime: Any) -> Runtime:
    if isinstance(runtime, PurePath):
        raise ConfigurationError(_unknown(str(runtime)))
    # Not hasattr, which would compute properties, and so load models.
    known = dir(runtime)
    missing = [name for name in _NEEDED if name not in known]
    if isinstance(runtime, type):
        name = runtime.__name__
        said = f"the class {name}; make an object of it: {name}()"
    elif not missing:
        opened: Runtime = runtime
        return opened
    elif "embedder" in known or "runtime" in known:
        place = "runtime" if "runtime" in known else "embedder.runtime"
        said = f"a {type(runtime).__name__}, not a runtime; pass its .{place}"
    else:
        said = (
            f"{'None' if runtime is None else f'a {type(runtime).__name__}'}, not a runtime: it "
            f"lacks {', '.join(missing)}; use {_names()}, or an object of a class that inherits "
            "from gemma_embed.runtimes.Runtime"
        )
    raise ConfigurationError(f"runtime is {said}")


def _unknown(name: object) -> str:
    said = f"unknown runtime {name!r}; use {_names()}, or a runtime object"
    if not isinstance(name, str):
        return said
    if is_ollama_tag(name):
        return f"{said}. If it is a model of an Ollama server: runtime='ollama', model={name!r}"
    if name == model_of_repository(name).repository or any(mark in name for mark in "/\\~"):
        return (
            f"{said}. If it is a model: OnnxRuntime({name!r}) or TransformersRuntime({name!r}), or "
            f"runtime='onnx' or 'transformers' with model={name!r}"
        )
    return said


def _names() -> str:
    return " or ".join(map(repr, RUNTIMES))
