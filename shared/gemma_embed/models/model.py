"""What a row of the model table and a family of models state."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemma_embed.errors import ConfigurationError
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


class Family(Protocol):
    """Models of one architecture: how their checkpoints are recognised and judged."""

    @property
    def transformers_class(self) -> str:
        """The class of ``transformers`` that computes the backbone."""

    @property
    def transformers_version(self) -> str:
        """The first version of ``transformers`` that computes it right."""

    @property
    def fast(self) -> bool:
        """Whether ``gemma_fast`` computes it: packed on torch, and as an ONNX graph."""

    @property
    def ollama(self) -> OllamaSupport:
        """Which Ollama servers compute it right."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Tell whether a ``config.json`` is of this family."""

    def network(self, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Return the text network's part of a ``config.json``.

        Returns:
            That part, and what the names of the network's tensors begin with in the weights.
        """

    def pooled_width(self, config: Mapping[str, Any]) -> object:
        """Return how many numbers are pooled, as the text network's config states it."""

    def check(self, config: Mapping[str, Any], model: Model, where: object) -> None:
        """Check that ``config.json`` gives the vectors that the model was trained for.

        Args:
            config: The text network's part of the parsed file.
            model: The row that the checkpoint should be.
            where: Its folder, for messages.

        Raises:
            WrongModel: If it does not.
        """

    def modules(self, model: Model) -> tuple[str, ...]:
        """Return the classes that ``modules.json`` of a checkpoint chains, in order."""


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
