"""A checkpoint folder: read and judged before any weight is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gemma_embed.errors import ModelCorrupt, WrongModel
from gemma_embed.models import BUNDLED, Model, model_of_config
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.local.files import File, exists, read_json
from gemma_embed.runtimes.local.layout import check_whole, graph_files, read_config, weight_files
from gemma_embed.runtimes.local.revision import revision_of
from gemma_fast.weights import Weights

logger = logging.getLogger("gemma_embed")

# BOS, a prompt and a text of one token each, EOS.
_FEWEST_TOKENS = 4


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds what the model table says it must.

    Runtimes load the files named here and no others.

    Attributes:
        folder: Where it is.
        model: The row that it is.
        prompts: The row's, unless the checkpoint states others.
        max_tokens: Tokens read of a text, special tokens included.
        config: The text network's part of the parsed ``config.json``.
        prefix: What the names of the text network's tensors begin with.
        weights: Safetensors files of the backbone; or an ONNX graph, and the files of its numbers.
        dense: The safetensors file of each Dense layer, in order.
        tokenizer: The ``tokenizer.json``.
        files: All files that decide vectors, as they were before any was read.
    """

    folder: Path
    model: Model
    prompts: Prompts
    max_tokens: int
    config: Mapping[str, Any] = field(repr=False)
    prefix: str
    weights: tuple[Path, ...]
    dense: tuple[Path, ...]
    tokenizer: Path
    files: tuple[File, ...]

    @classmethod
    def read(cls, folder: Path, model: Model, graph: str | None = None) -> Checkpoint:
        """Read a folder's JSON files and judge them.

        Args:
            folder: The model's.
            model: The row that it should be.
            graph: The place in the folder of a finished ONNX graph that is used instead of weights.

        Raises:
            ModelNotFound: If the folder holds no model, or not this graph.
            ModelCorrupt: If a file is missing, damaged, or pickled.
            WrongModel: If its vectors would not be this model's.
        """
        config = read_config(folder)
        found = model_of_config(config, folder)
        # The bundled model is known by its place: its config.json is one of its family.
        if model != BUNDLED and found != model:
            raise WrongModel(
                f"{folder} holds {found.name}, and this runtime was made for {model.name}, going "
                f"by its name or an earlier config.json; create a new one with "
                f"model={str(folder)!r}"
            )
        network, prefix = model.family.network(config)
        if graph is None:
            model.family.check(network, model, folder)
            check_whole(folder, config)
            weights, dense = weight_files(folder, network.get(model.family.pooled), model)
        else:
            weights, dense = graph_files(folder, graph), ()
        tokenizer = folder / "tokenizer.json"
        if not tokenizer.is_file():
            # Without it, transformers makes up a tokenizer of five tokens.
            raise ModelCorrupt(f"{tokenizer} is missing; download the model again")
        paths = sorted((folder / "config.json", tokenizer, *weights, *dense))
        return cls(
            folder=folder,
            model=model,
            prompts=_prompts(folder, model),
            max_tokens=_max_tokens(folder, network, model),
            config=network,
            prefix=prefix,
            weights=weights,
            dense=dense,
            tokenizer=tokenizer,
            files=tuple(map(File.at, paths)),
        )

    def tensors(self) -> Weights:
        """Read the names and places of the text network's tensors.

        Raises:
            Damaged: If a file is.
        """
        return Weights(self.weights, self.prefix)

    @cached_property
    def revision(self) -> str:
        """Name of these weights: the hub's commit, or a SHA-256 over ``files``.

        Raises:
            ModelCorrupt: If a file cannot be read any more.
            ModelChanged: If the files changed since they were judged.
        """
        return revision_of(self.folder, self.files)


def own_prompts(own: object, model: Model, path: Path, name: str) -> Prompts:
    """Return a model's prompts with those that a checkpoint states itself.

    Args:
        own: For each key of the model's ``prompt_keys`` a prompt; some, or none.
        model: The row.
        path: The file that states them.
        name: What the warning calls the checkpoint.

    Raises:
        ModelCorrupt: If they are not text.
    """
    if not isinstance(own, dict) or not all(isinstance(prompt, str) for prompt in own.values()):
        raise ModelCorrupt(f"{path} has prompts that are not text; download the model again")
    empty = sorted(task for task, key in model.prompt_keys.items() if own.get(key) == "")
    prompts, changed = model.prompts.overridden(own, model.prompt_keys)
    for message, tasks in (
        (
            "%s states empty prompts for %s; they count as not stated, and those of %s are used",
            empty,
        ),
        ("%s states its own prompts for %s; they replace those of %s", changed),
    ):
        if tasks:
            logger.warning(message, name, ", ".join(tasks), model.name)
    return prompts


def _prompts(folder: Path, model: Model) -> Prompts:
    path = folder / "config_sentence_transformers.json"
    if not exists(path):
        return model.prompts
    return own_prompts(read_json(path).get("prompts") or {}, model, path, folder.name)


def _max_tokens(folder: Path, config: Mapping[str, Any], model: Model) -> int:
    """Return the tokens that sentence-transformers reads, at most the model's context.

    ``max_seq_length`` where it is stated (version 5), else the tokenizer's ``model_max_length``
    (version 6); and the network has positions for no more than ``max_position_embeddings``.
    """
    files = ("sentence_bert_config.json", "tokenizer_config.json")
    settings = {name: read_json(folder / name) for name in files if exists(folder / name)}
    settings["config.json"] = config

    def count(file: str, name: str) -> int | None:
        value = settings.get(file, {}).get(name)
        # "Unlimited" is written as 1e30.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (type(value) is not int or value < 1):
            raise ModelCorrupt(
                f"{folder / file} has a {name} that is no number of tokens; correct it"
            )
        return value

    stated = count("sentence_bert_config.json", "max_seq_length")
    tokenizer = count("tokenizer_config.json", "model_max_length")
    known = count("config.json", "max_position_embeddings")
    limit = min(stated or tokenizer or model.context, known or model.context, model.context)
    if limit < _FEWEST_TOKENS:
        raise ModelCorrupt(
            f"{folder} limits texts to {limit} tokens, and BOS, a prompt, a text and EOS need "
            f"{_FEWEST_TOKENS} at least; correct max_seq_length in sentence_bert_config.json, "
            "model_max_length in tokenizer_config.json or max_position_embeddings in config.json"
        )
    return limit
