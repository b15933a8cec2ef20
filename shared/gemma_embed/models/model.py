"""What a row of the model table and a family of models state."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gemma_embed.errors import ConfigurationError, WrongModel
from gemma_embed.prompts import Prompts

Version = tuple[int, int, int]


@dataclass(frozen=True)
class OllamaSupport:
    """How Ollama servers compute a family.

    Attributes:
        architectures: ``general.architecture`` that a server may report for it; empty if what
            servers report of this family is unverified: then only the vectors are checked.
        oldest: The first version that runs the family.
        eras: Versions from which the vectors are another space, oldest first, each with the name
            that the fingerprint records. Servers before the first era give wrong vectors.
        fault: What servers before the first era do wrong.
        deviations: For an era whose vectors are not those of the trained model, what it does.
        coarse: For a quantisation, in capital letters, that users should know of, what it does.
    """

    architectures: tuple[str, ...]
    oldest: Version
    eras: tuple[tuple[Version, str], ...]
    fault: str
    deviations: Mapping[str, str] = field(default_factory=dict)
    coarse: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Models of one architecture: how their checkpoints are recognised and judged.

    What is written here is what most have; a family's class states and overrides the rest.

    Attributes:
        model_types: ``model_type`` of its ``config.json``.
        transformers_class: The class of ``transformers`` that computes the backbone.
        transformers_version: The first version that computes it right.
        fast: Whether ``gemma_fast`` computes it: packed on torch, and as an ONNX graph.
        pooled: The name in the text network's config of the number of numbers that are pooled.
        sliding_window: ``sliding_window`` as a correct ``config.json`` states it, in tokens.
        window_means: What that counts, and how it becomes wrong, for the error.
        ollama: Which Ollama servers compute it right.
    """

    model_types: ClassVar[tuple[str, ...]]
    transformers_class: ClassVar[str]
    transformers_version: ClassVar[str]
    fast: ClassVar[bool]
    pooled: ClassVar[str]
    sliding_window: ClassVar[int]
    window_means: ClassVar[str]
    ollama: ClassVar[OllamaSupport]

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Tell whether a ``config.json`` is of this family."""
        return config.get("model_type") in self.model_types

    def network(self, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Return the text network's part of a ``config.json``.

        Returns:
            That part, and what the names of the network's tensors begin with in the weights.
        """
        return config, ""

    def check(self, config: Mapping[str, Any], model: Model, where: object) -> None:
        """Check that ``config.json`` gives the vectors that the model was trained for.

        Args:
            config: The text network's part of the parsed file.
            model: The row that the checkpoint should be.
            where: Its folder, for messages.

        Raises:
            WrongModel: If it does not.
        """
        window = config.get("sliding_window")
        if window != self.sliding_window:
            raise WrongModel(
                f"{where}/config.json says sliding_window: {window}, {model.name} was trained with "
                f"{self.sliding_window}{self.window_means}; set it back to {self.sliding_window} "
                "in that file"
            )

    def modules(self, model: Model) -> tuple[str, ...]:
        """Return the classes that ``modules.json`` of a checkpoint chains, in order."""
        return ("Transformer", "Pooling", *["Dense"] * model.dense_layers, "Normalize")


@dataclass(frozen=True)
class Model:
    """A row of the model table.

    Attributes:
        name: The name in the table; part of every fingerprint.
        family: Its architecture.
        width: Numbers in a full vector.
        dimensions: Widths it may be cut to (Matryoshka), longest first; ``width`` included.
        context: Tokens that the model reads, prompt and special tokens included.
        prompts: The prompts of its model card.
        prompt_keys: For each task the key in a checkpoint's own list of prompts.
        symmetric_tasks: Tasks in which queries and documents get the same prompt; in all others
            documents get the document prompt.
        dense_layers: Number of Dense layers after pooling.
        parameters: Number of parameters, those of the Dense layers included.
        bos: Id of the token that starts every input.
        eos: Id of the token that ends every input.
        licence: The licence of the weights.
        gated: Whether the hub wants the licence accepted before a download.
        repository: The hub id of its weights.
        misnamed: Hub ids that circulate for it and do not exist.
        onnx_repository: The hub id of its published ONNX graphs; None if there are none.
        ollama_tag: Its name in Ollama's library.
        gguf: A published GGUF file of all its layers, for llama.cpp.
        config: Values in ``config.json`` that tell it from other rows of its family.
    """

    name: str
    family: Family
    width: int
    dimensions: tuple[int, ...]
    context: int
    prompts: Prompts
    prompt_keys: Mapping[str, str]
    symmetric_tasks: frozenset[str]
    dense_layers: int
    parameters: int
    bos: int
    eos: int
    licence: str
    gated: bool
    repository: str
    onnx_repository: str | None
    ollama_tag: str
    gguf: str
    config: Mapping[str, object] = field(default_factory=dict)
    misnamed: frozenset[str] = frozenset()

    def checked_dimensions(self, dimensions: int) -> int:
        """Return ``dimensions`` as an ``int`` if vectors of this model may be cut to it.

        Integers of other types, such as ``numpy.int64``, are converted; floats are refused.

        Raises:
            ConfigurationError: If it is not one of the model's widths.
        """
        try:
            width = None if isinstance(dimensions, bool) else operator.index(dimensions)
        except TypeError:
            width = None
        if width is None or width not in self.dimensions:
            allowed = ", ".join(map(str, self.dimensions))
            raise ConfigurationError(
                f"dimensions={dimensions!r} is not a width that {self.name} was trained for; "
                f"use one of {allowed}, as an int"
            )
        return width
