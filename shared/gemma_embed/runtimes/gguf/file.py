"""A GGUF file: read and judged before llama.cpp opens it, which ends the process over some faults.

Files of llama.cpp's converter and of ``gemma_embed.export`` are taken; the older form of Ollama's
library is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_embed.errors import ModelCorrupt, ModelNotFound, WrongModel
from gemma_embed.models import Model
from gemma_embed.runtimes.local.checkpoint import Checkpoint, own_prompts
from gemma_embed.runtimes.local.files import File
from gemma_embed.runtimes.local.loading import loading
from gemma_fast.errors import Damaged
from gemma_fast.gguf_file import ARCHITECTURE, PROMPTS, Header, read_header
from gemma_fast.gguf_vocabulary import CONTROL, Vocabulary

_MEAN = 1
# Beside the keys of the file, whose names all have dots.
_PRECISION = "precision"


def read_model(path: Path, model: Model) -> Checkpoint:
    """Read a file's header and judge it.

    Args:
        path: The file.
        model: The row that it should be.

    Raises:
        ModelNotFound: If there is no such file.
        ModelCorrupt: If it is damaged.
        WrongModel: If its vectors would not be this model's.
    """
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist"
        raise ModelNotFound(f"{path} {what}; get {model.gguf}, or write one: gemma-embed export")
    before = File.at(path)
    try:
        header = read_header(path)
    except Damaged as error:
        raise ModelCorrupt(str(error)) from error
    # Keys may be of any type.
    with loading(str(path)):
        _check(header, model, path)
    keys = _of_architecture(header.keys)
    return Checkpoint(
        # So that another name of the file is no other revision.
        folder=path,
        model=model,
        prompts=own_prompts(_prompts(header, path), model, path, path.name),
        max_tokens=min(int(keys["context_length"]), model.context),
        config={**header.keys, _PRECISION: _precision(header)},
        weights=(path,),
        dense=(),
        tokenizer=path,
        prefix="",
        files=(before,),
    )


def precision_of(checkpoint: Checkpoint) -> str:
    """Return what most of a file's matrices are stored as, in GGML's words."""
    precision: str = checkpoint.config[_PRECISION]
    return precision


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """Return a file's vocabulary."""
    keys = checkpoint.config
    return Vocabulary(
        keys["tokenizer.ggml.tokens"],
        keys["tokenizer.ggml.token_type"].tolist(),
        keys["tokenizer.ggml.scores"].tolist(),
    )


def _of_architecture(keys: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{ARCHITECTURE}."
    return {
        key.removeprefix(prefix): value for key, value in keys.items() if key.startswith(prefix)
    }


def _precision(header: Header) -> str:
    kinds = list(header.types.values())
    most = max(set(kinds) - {0} or {0}, key=kinds.count)
    return {0: "f32", 1: "f16", 2: "q4_0", 8: "q8_0", 30: "bf16"}.get(most, f"ggml type {most}")


def _check(header: Header, model: Model, path: Path) -> None:
    keys, own = header.keys, _of_architecture(header.keys)
    again = (
        f"take {model.gguf}, or write the checkpoint again: gemma-embed export gguf FOLDER {path}"
    )

    def wrong(what: str) -> WrongModel:
        return WrongModel(f"{path} {what}; {again}")

    architecture = keys.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise wrong(
            f"is of the architecture {architecture!r}, not {ARCHITECTURE!r}, as files of Ollama's "
            "library and generators are"
        )
    if keys.get("split.count", 0) > 1:
        raise wrong("is one part of several")
    table = header.shapes.get("token_embd.weight", ())
    if own.get("embedding_length") != model.width or table[1:] != (model.width,):
        raise wrong(f"is not {own.get('embedding_length')} but {model.width} numbers wide")
    dense = [header.shapes.get(f"dense_{2 + layer}.weight") for layer in range(model.dense_layers)]
    if None in dense:
        raise wrong(f"lacks the {model.dense_layers} Dense layers, so it gives other vectors")
    if dense[0][1:] + dense[-1][:1] != (model.width, model.width):  # type: ignore[index]
        raise wrong(f"has Dense layers of shapes {dense}")
    if own.get("pooling_type") != _MEAN:
        raise wrong(f"asks for pooling {own.get('pooling_type')}, not the mean ({_MEAN})")
    window = model.family.sliding_window
    if own.get("attention.sliding_window") != window:
        raise wrong(
            f"has a sliding window of {own.get('attention.sliding_window')}, not of {window}"
        )
    if not isinstance(own.get("context_length"), int):
        raise wrong("does not say how many tokens it reads")
    types = keys.get("tokenizer.ggml.token_type", ())
    if (
        keys.get("tokenizer.ggml.model") != "llama"
        or not len(types) == len(keys.get("tokenizer.ggml.tokens", ())) == table[0]
        or len(keys.get("tokenizer.ggml.scores", ())) != table[0]
        or not types[model.bos] == types[model.eos] == CONTROL
    ):
        raise wrong("has a vocabulary of another kind, or without its control tokens")


def _prompts(header: Header, path: Path) -> dict[str, str]:
    stated = header.keys.get(PROMPTS, "{}")
    try:
        found: dict[str, str] = json.loads(stated)
    except (TypeError, ValueError) as error:
        raise ModelCorrupt(f"{path} has prompts that are not JSON; write it again") from error
    return found
