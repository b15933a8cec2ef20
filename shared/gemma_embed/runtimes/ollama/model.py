"""Whether an Ollama server computes EmbeddingGemma's vectors, judged by what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from gemma_embed.errors import ModelNotFound, WrongModel
from gemma_embed.models import Model

Era = Literal["causal", "windowless", "bidirectional", "unknown"]

OLDEST = (0, 11, 10)
FIRST_BIDIRECTIONAL = (0, 12, 7)
FIRST_WINDOWED = (0, 30, 0)
_MOST_NAMES = 5


@dataclass(frozen=True)
class Held:
    """A model as a server holds it.

    Attributes:
        digest: Of its manifest, 64 hexadecimal digits; ``unknown`` if the server does not say.
        quantization: ``BF16``, ``Q8_0``...; ``unknown`` if the server does not say.
        context: Tokens that it reads.
        era: How the server computes it.
    """

    digest: str
    quantization: str
    context: int
    era: Era


def era_of(version: str | None, server: str) -> Era:
    """Return how a server of this version computes EmbeddingGemma.

    Ollama's own engine ran the model with causal attention up to 0.12.6 (ollama/ollama#12297), and
    then with none of its sliding windows up to 0.24; since 0.30 llama.cpp runs it as trained.

    Args:
        version: From ``/api/version``. Source builds say 0.0.0, forks say anything: these are
            ``unknown`` and pass.
        server: Its URL, for messages.

    Raises:
        WrongModel: If the version is too old for the model, or computes other vectors.
    """
    match = re.match(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})", version or "")
    numbers = tuple(map(int, match.groups())) if match else (0, 0, 0)
    if not any(numbers):
        return "unknown"
    # Of what a server says only this is shown.
    known = ".".join(map(str, numbers))
    if numbers < OLDEST:
        raise WrongModel(
            f"Ollama {known} ({server}) is too old to run EmbeddingGemma; "
            "update it to 0.30 or later"
        )
    if numbers < FIRST_BIDIRECTIONAL:
        raise WrongModel(
            f"Ollama {known} ({server}) runs EmbeddingGemma with causal attention and gives "
            "wrong vectors; update it to 0.30 or later, and embed again what it made"
        )
    return "windowless" if numbers < FIRST_WINDOWED else "bidirectional"


def full_name(tag: str) -> str:
    """Return the form in which two names of one model are equal."""
    name = tag.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def leaves_the_device(tag: str) -> bool:
    """Tell whether this names a model that Ollama runs in its cloud."""
    label = full_name(tag).rpartition(":")[2]
    return label == "cloud" or label.endswith("-cloud")


def not_found(tag: str, names: Sequence[str], server: str) -> ModelNotFound:
    """Return the error for a model that the server lacks, with some that it has instead.

    Args:
        tag: The name asked for.
        names: What the server has, fit to be shown.
        server: Its URL, for messages.
    """
    similar = sorted(name for name in names if "embed" in name.lower())[:_MOST_NAMES]
    there = f"; it has {', '.join(similar)}, to be given as model=" if similar else ""
    return ModelNotFound(
        f"the Ollama server has no model {tag!r} ({server}); run: ollama pull {tag}{there}"
    )


def checked_model(
    shown: Mapping[str, Any],
    *,
    model: Model,
    tag: str,
    server: str,
    era: Era,
    digest: str | None,
    quantization: str | None,
    printable: Callable[[str], str],
    allow_cloud: bool,
) -> Held:
    """Return what the server holds under a tag, if it can be the model that it should be.

    What a server does not report passes: old ones report less.

    Args:
        shown: The answer of a verbose ``/api/show``.
        model: What it should be.
        tag: The name asked for.
        server: Its URL, for messages.
        era: How the server computes.
        digest: From ``/api/tags``; show has none.
        quantization: From ``/api/tags``.
        printable: Makes the server's words fit to be shown.
        allow_cloud: Whether the server may hand the texts on to another machine.

    Raises:
        WrongModel: If it embeds nothing, is another architecture or width, lacks the Dense
            layers, is F16, or runs on another machine and must not.
    """

    def wrong(reason: str, mend: str = f"run: ollama pull {model.ollama_tag}") -> WrongModel:
        return WrongModel(f"{tag!r} is not {model.name}: it {reason} ({server}); {mend}")

    if (shown.get("remote_host") or shown.get("remote_model")) and not allow_cloud:
        raise wrong(
            "runs on another machine, and the texts would go there",
            f"run: ollama pull {model.ollama_tag}, or give allow_cloud=True",
        )
    capabilities = shown.get("capabilities")
    if isinstance(capabilities, list) and "embedding" not in capabilities:
        raise wrong("does not embed texts")
    facts = shown.get("model_info")
    facts = facts if isinstance(facts, dict) else {}
    architecture = facts.get("general.architecture")
    if architecture is not None and architecture not in model.family.ollama.architectures:
        raise wrong(f"has the architecture {printable(ascii(architecture))}")
    width = facts.get(f"{architecture}.embedding_length")
    if width is not None and width != model.width:
        raise wrong(f"has vectors of {printable(ascii(width))} numbers, not {model.width}")
    dense = _dense_layers(shown.get("tensors"))
    if dense is not None and dense < model.dense_layers:
        raise wrong(
            f"lacks Dense layers ({dense} of {model.dense_layers}) and gives other vectors",
            f"run: ollama pull {model.ollama_tag}; or convert the checkpoint again with "
            "convert_hf_to_gguf.py --sentence-transformers-dense-modules",
        )
    details = shown.get("details")
    shown_quantization = details.get("quantization_level") if isinstance(details, dict) else None
    quantization = str(quantization or shown_quantization or "unknown")
    if quantization.upper() == "F16":
        raise wrong(
            "is stored as F16, in which this model overflows and gives NaN or zeros",
            f"take BF16, F32, Q8_0 or Q4_0; {model.ollama_tag} is one of them",
        )
    context = facts.get(f"{architecture}.context_length")
    return Held(
        digest=str(digest or "unknown"),
        quantization=quantization,
        context=min(context, model.context) if _is_count(context) else model.context,
        era=era,
    )


def _dense_layers(tensors: object) -> int | None:
    """Count the Dense layers among tensor names; None if there are no names.

    Ollama's library names them ``dense.0.weight`` on, llama.cpp's converter ``dense_2.weight``.
    """
    if not isinstance(tensors, list) or not tensors:
        return None
    names = {str(tensor.get("name")) for tensor in tensors if isinstance(tensor, dict)}
    return sum(bool(re.fullmatch(r"dense[._]\d+\.weight", name)) for name in names)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
