"""How every subcommand names a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes import Runtime, open_runtime
from gemma_embed.runtimes.named import RUNTIMES

_SERVERS = ("ollama", "openai")

HELP = (
    f"{', '.join(RUNTIMES)}; a server's address (ollama, or openai if it ends in /v1); a "
    ".gguf file, which llama.cpp loads; a folder, or 'bundled', which transformers loads. A "
    "precision may follow, onnx:int8, or a server's tag, ollama:TAG"
)


def opened(named: str, model: str | None = None, precision: str | None = None) -> Runtime:
    """Return the runtime that a command line names; nothing is loaded.

    Args:
        named: See ``HELP``.
        model: Folder, hub id or server tag, for a runtime's name.
        precision: Of a runtime in this process; None for its default.

    Raises:
        ConfigurationError: If it names none, or is told the same thing twice.
    """
    settings: dict[str, Any] = {"runtime": named}
    name, _, detail = named.partition(":")
    if named.startswith(("http://", "https://")):
        kind = "openai" if named.rstrip("/").endswith("/v1") else "ollama"
        settings = {"runtime": kind, "host": named}
    elif named.endswith(".gguf"):
        _once(named, "--model", named, model)
        settings = {"runtime": "gguf", "model": named}
    elif name in _SERVERS and detail:
        model, settings = _once(named, "--model", detail, model), {"runtime": name}
    else:
        if not Path(named).is_dir():
            # A path may hold a colon itself.
            name, _, detail = named.rpartition(":") if ":" in named else (named, "", "")
            precision = _once(named, "--precision", detail, precision) if detail else precision
            settings = {"runtime": name}
        if settings["runtime"] not in RUNTIMES:
            settings = {"runtime": "transformers", "model": _folder(settings["runtime"], model)}
    if named == "gguf" and not str(model).endswith(".gguf"):
        raise ConfigurationError(
            "name the .gguf file itself in place of gguf: it is one file, not a folder or hub id"
        )
    if model is not None:
        settings["model"] = model
    if precision is not None:
        option = "dtype" if settings["runtime"] in ("transformers", "mlx") else "precision"
        settings[option] = precision
    return open_runtime(settings)


def opened_all(names: Sequence[str], model: str | None) -> dict[str, Runtime]:
    """Return several runtimes by what the command line calls them; nothing is loaded.

    Args:
        names: Each as in ``HELP``.
        model: Folder or hub id, for the names of runtimes in this process.

    Raises:
        ConfigurationError: If one names no runtime, or none takes the model.
    """
    kinds = {name: name.partition(":")[0] for name in names}
    # A folder for the others is no file for "gguf".
    other = (*_SERVERS, "gguf")
    take = {name for name, kind in kinds.items() if kind in RUNTIMES and kind not in other}
    if model is not None and not take:
        raise ConfigurationError(
            "--model is for a runtime in this process: name onnx, or another one"
        )
    return {name: opened(name, model if name in take else None) for name in kinds}


def _once(named: str, option: str, detail: str, given: str | None) -> str:
    if given is not None:
        raise ConfigurationError(f"{named} and {option} {given} are one setting; give one of them")
    return detail


def _folder(name: str, model: str | None) -> str:
    if model is not None:
        raise ConfigurationError(f"--model needs one of {', '.join(RUNTIMES)} before it")
    if name != "bundled" and not Path(name).is_dir():
        raise ConfigurationError(
            f"{name!r} is no runtime, address, .gguf file or folder: name one of "
            f"{', '.join(RUNTIMES)}, http://..., or a folder with a checkpoint"
        )
    return name
