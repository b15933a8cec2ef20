"""A checkpoint folder: read and judged before any weight is loaded.

Two layouts exist (sentence-transformers 5, in which Google published, and 6, in which fine-tunes
are saved); both are plain JSON and safetensors. ``modules.json`` names classes; they are
compared with an allow-list, and nothing is ever imported from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from gemma_embed.errors import ModelCorrupt, ModelNotFound, WrongModel
from gemma_embed.models import Model
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.local.files import File, check_unchanged

logger = logging.getLogger("gemma_embed")

_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds what the model table says it must.

    Attributes:
        folder: Where it is.
        model: The row it was judged by.
        prompts: The row's, unless the checkpoint states others.
        max_tokens: Tokens read of a text, special tokens counted.
        dense: Folders of the Dense layers, in order.
        files: Those that decide vectors, as they were before any was read.
    """

    folder: Path
    model: Model
    prompts: Prompts
    max_tokens: int
    dense: tuple[Path, ...]
    files: tuple[File, ...]

    @classmethod
    def read(cls, folder: Path, model: Model) -> Checkpoint:
        """Read a folder's JSON files and judge them.

        Raises:
            ModelNotFound: If the folder holds no model.
            ModelCorrupt: If a file is missing, damaged, or pickled.
            WrongModel: If its vectors would not be this model's.
        """
        config = _basics(folder)
        _check_type(config, folder, model)
        model.family.check(config, model, folder)
        pooling, dense = _modules(folder, model)
        _check_pooling(_json(pooling / "config.json"), pooling)
        _check_dense(dense, config["hidden_size"], model)
        for weights in (folder, *dense):
            _check_weights(weights)
        files = tuple(map(File.at, sorted(_vector_files(folder, dense))))
        prompts, max_tokens = _prompts(folder, model), _max_tokens(folder, config, model)
        return cls(folder, model, prompts, max_tokens, dense, files)

    @classmethod
    def of_graph(cls, folder: Path, model: Model, graph: str) -> Checkpoint:
        """Read a folder that holds an ONNX graph instead of weights, as onnx-community publishes.

        Args:
            folder: The model's.
            model: What it should be.
            graph: The graph's path in it.

        Raises:
            ModelNotFound: If the folder holds no model, or not this graph.
            ModelCorrupt: If a file is missing or damaged.
            WrongModel: If its vectors would not be this model's.
        """
        config = _basics(folder)
        _check_type(config, folder, model)
        path = folder / graph
        if not path.is_file():
            there = ", ".join(sorted(other.name for other in path.parent.glob("*.onnx")))
            raise ModelNotFound(
                f"{folder} has no {graph}, which this precision needs; it has {there or 'none'}"
            )
        numbers = sorted(path.parent.glob(f"{path.name}_data*"))
        paths = [folder / "config.json", path, *numbers, folder / "tokenizer.json"]
        prompts, max_tokens = _prompts(folder, model), _max_tokens(folder, config, model)
        return cls(folder, model, prompts, max_tokens, (), tuple(map(File.at, paths)))

    @cached_property
    def revision(self) -> str:
        """Name of these weights: the hub's commit, or a SHA-256 over the files that matter.

        Raises:
            ModelChanged: If the files changed since they were judged.
        """
        if self.folder.parent.name == "snapshots" and len(self.folder.name) == 40:
            return self.folder.name
        digest = hashlib.sha256()
        for seen in self.files:
            digest.update(seen.path.relative_to(self.folder).as_posix().encode() + b"\0")
            try:
                with seen.path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ModelCorrupt(
                    f"{seen.path} cannot be read any more; download the model again"
                ) from error
        check_unchanged(self.files)
        return f"sha256:{digest.hexdigest()}"


def _basics(folder: Path) -> dict[str, Any]:
    if not _is_there(folder / "config.json"):
        raise ModelNotFound(f"{folder} holds no config.json, so it is not a model folder")
    config = _json(folder / "config.json")
    if not (folder / "tokenizer.json").is_file():
        # Without it, transformers makes up a tokenizer of five tokens.
        raise ModelCorrupt(f"{folder}/tokenizer.json is missing; download the model again")
    if _is_there(folder / "tokenizer_config.json"):
        _json(folder / "tokenizer_config.json")
    return config


def _vector_files(folder: Path, dense: tuple[Path, ...]) -> Iterator[Path]:
    yield folder / "config.json"
    yield folder / "tokenizer.json"
    for weights in (folder, *dense):
        yield from weights.glob("*.safetensors")


def _json(path: Path) -> dict[str, Any]:
    value = _any_json(path)
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{path} is not a JSON object; download the model again")
    return value


def _is_there(path: Path) -> bool:
    # Unlike exists(): a link to nowhere, as a cleaned up cache leaves it, is no missing option.
    return os.path.lexists(path)


def _any_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelCorrupt(f"{path} is missing; download the model again, whole") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path} is not readable JSON; download the model again") from error


def _check_type(config: Mapping[str, Any], folder: Path, model: Model) -> None:
    if not model.family.recognises(config):
        raise WrongModel(
            f"{folder} holds a {config.get('model_type')!r} model, which is not {model.name}; "
            "name a folder or hub id of EmbeddingGemma or a fine-tune of it"
        )


def _modules(folder: Path, model: Model) -> tuple[Path, tuple[Path, ...]]:
    path = folder / "modules.json"
    if not path.is_file():
        raise WrongModel(
            f"{folder} has no modules.json, so its pooling and Dense layers are missing; "
            "copy the whole model folder, not just the backbone"
        )
    modules = _any_json(path)
    found: list[tuple[str, Path]] = []
    for module in modules if isinstance(modules, list) else ():
        kind = str(module.get("type")) if isinstance(module, dict) else "?"
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or name not in _MODULES:
            raise WrongModel(
                f"{path} asks for a module of class {kind!r}; only sentence-transformers' own "
                f"{', '.join(_MODULES)} are read, and no class named in a model is ever imported"
            )
        place = PurePosixPath(str(module.get("path", "")))
        if place.is_absolute() or ".." in place.parts:
            raise WrongModel(f"{path} points outside the model folder")
        found.append((name, folder / place))
    kinds = [name for name, _ in found]
    expected = list(model.family.modules(model))
    if kinds.count("Dense") < model.dense_layers:
        raise WrongModel(
            f"{path} lists {kinds.count('Dense')} Dense layers, {model.name} has "
            f"{model.dense_layers}: without them vectors lie in another space; "
            "use a copy of the model that kept them"
        )
    if kinds != expected or found[0][1] != folder:
        raise WrongModel(f"{path} chains {kinds}, {model.name} is {expected}; use that layout")
    return found[1][1], tuple(place for name, place in found if name == "Dense")


def _check_pooling(config: Mapping[str, Any], folder: Path) -> None:
    modes = {
        key.removeprefix("pooling_mode_")
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on is True
    }
    modes |= {str(config["pooling_mode"])} if "pooling_mode" in config else set()
    if not modes <= {"mean", "mean_tokens"} or not modes:
        raise WrongModel(f"{folder}/config.json asks for {sorted(modes)} pooling, not the mean")
    if config.get("include_prompt", True) is not True:
        raise WrongModel(f"{folder}/config.json leaves the prompt out of the mean; set it to true")


def _check_dense(folders: tuple[Path, ...], hidden_size: int, model: Model) -> None:
    width = hidden_size
    for folder in folders:
        config = _json(folder / "config.json")
        activation = str(config.get("activation_function", "")).rpartition(".")[2]
        if config.get("bias") is not False or activation != "Identity":
            raise WrongModel(
                f"{folder}/config.json is a Dense layer with a bias or an activation "
                f"({activation}); those of {model.name} have neither"
            )
        if config.get("in_features") != width:
            raise ModelCorrupt(
                f"{folder}/config.json does not take the {width} numbers before "
                "it; download the model again"
            )
        width = config.get("out_features", 0)
    if width != model.width:
        raise WrongModel(f"{folders[-1]} ends {width} wide, {model.name} is {model.width} wide")


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        if pickled:
            raise ModelCorrupt(
                f"{folder} holds only pickled weights ({', '.join(pickled)}), which can run code "
                "when loaded and are never read; get the safetensors copy of the model"
            )
        raise ModelCorrupt(f"{folder} holds no safetensors file; download the model again, whole")
    for path in files:
        try:
            with path.open("rb") as file:
                start = file.read(len(_LFS_POINTER))
            length = path.stat().st_size
        except OSError as error:
            raise ModelCorrupt(f"{path} cannot be read; download it again") from error
        if start == _LFS_POINTER:
            raise ModelCorrupt(f"{path} is a Git LFS pointer, not weights; run: git lfs pull")
        header = int.from_bytes(start[:8], "little")
        if length < 8 or header > length - 8:
            raise ModelCorrupt(f"{path} is truncated or damaged; download it again")


def _prompts(folder: Path, model: Model) -> Prompts:
    path = folder / "config_sentence_transformers.json"
    if not _is_there(path):
        return model.prompts
    own = _json(path).get("prompts") or {}
    if not isinstance(own, dict) or not all(isinstance(prompt, str) for prompt in own.values()):
        raise ModelCorrupt(f"{path} has prompts that are not text; download the model again")
    prompts, changed = model.prompts.overridden(own, model.prompt_keys)
    if changed:
        logger.warning(
            "%s states its own prompts for %s; they replace those of %s",
            folder.name,
            ", ".join(changed),
            model.name,
        )
    return prompts


def _max_tokens(folder: Path, config: Mapping[str, Any], model: Model) -> int:
    path = folder / "sentence_bert_config.json"
    own = _json(path) if _is_there(path) else {}
    read = _tokens(own, "max_seq_length", path, model.context)
    # Whatever is to be read of a text, the network has positions for so many.
    known = _tokens(config, "max_position_embeddings", folder / "config.json", model.context)
    return min(read, known, model.context)


def _tokens(settings: Mapping[str, Any], name: str, path: Path, default: int) -> int:
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelCorrupt(f"{path} has a {name} that is no number of tokens; mend it")
    return value
