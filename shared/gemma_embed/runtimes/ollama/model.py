"""Whether an Ollama server computes a model's vectors, judged by what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_embed.errors import ModelNotFound, WrongModel
from gemma_embed.models import Model, window

if TYPE_CHECKING:
    from gemma_embed.runtimes.ollama.runtime import OllamaSettings

UNKNOWN = "unknown"
_MOST_NAMES = 5


def era_of(version: object, model: Model, server: str) -> tuple[str, str]:
    """Return how a server of this version computes a model, and how far that deviates.

    Args:
        version: From ``/api/version``. Source builds say 0.0.0, forks say anything, or none: these
            are ``unknown`` and pass.
        model: The row of the model table.
        server: Its URL, for messages.

    Returns:
        The era's name, and a sentence for a warning; empty for vectors as trained.

    Raises:
        WrongModel: If the version is too old for the model, or computes wrong vectors.
    """
    match = re.match(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})", str(version))
    numbers = tuple(map(int, match.groups())) if match else ()
    if not any(numbers):
        return UNKNOWN, ""
    support = model.family.ollama
    # Of what a server says only this is shown.
    known = ".".join(map(str, numbers))
    update = f"update it to {'.'.join(map(str, support.eras[-1][0][:2]))} or later"
    if numbers < support.oldest:
        raise WrongModel(f"Ollama {known} ({server}) is too old to run {model.name}; {update}")
    eras = [name for first, name in support.eras if first <= numbers]
    if not eras:
        raise WrongModel(
            f"Ollama {known} ({server}) runs {model.name} {support.fault} and gives wrong "
            f"vectors; {update}, and embed again what it made"
        )
    deviation = support.deviations.get(eras[-1], "")
    if deviation:
        deviation = f"Ollama {known} ({server}) {deviation}; {update}, and embed again what it made"
    return eras[-1], deviation


def probed_era(vector: Any, model: Model, server: str) -> tuple[str, str]:
    """Return what ``era_of`` does, for a server that does not tell its version.

    Args:
        vector: Its vector of ``window.TEXT``, as it came; None without one.
        model: The row of the model table.
        server: Its URL, for messages.
    """
    support = model.family.ollama
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0, np.float32)
    # Of another form, it is reported with the texts that are asked for.
    found = window.has_window(numbers) if numbers.shape == (model.width,) else None
    if found is None:
        return UNKNOWN, ""
    if found:
        return support.eras[-1][1], ""
    era = "windowless"
    return era, (
        f"Ollama ({server}), of a version that it does not tell, {support.deviations[era]}; update "
        "it, and embed again what it made"
    )


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
        f"the Ollama server does not have the model {tag!r} ({server}); "
        f"run: ollama pull {tag}{there}"
    )


def checked_model(
    answer: Mapping[str, Any],
    settings: OllamaSettings,
    listed_quantization: str | None,
    shown: Callable[[object], str],
) -> tuple[str, int, bool]:
    """Check that the server has under a tag the model that it should be.

    What a server does not report passes: old ones report less.

    Args:
        answer: Of a verbose ``/api/show``.
        settings: The model, and what it is called there.
        listed_quantization: From ``/api/tags``.
        shown: Makes the server's words fit to be shown.

    Returns:
        Its quantisation, the tokens that it reads of a text unless the server reads fewer, and
        whether llama.cpp puts a space before every text.

    Raises:
        WrongModel: If it does not embed, is of another architecture or width, lacks Dense layers,
            is F16, or runs on another machine and must not.
    """
    model = settings.row
    pull = f"run: ollama pull {model.ollama_tag}"

    def wrong(reason: str, fix: str = pull) -> WrongModel:
        tag, server = settings.model, settings.origin
        return WrongModel(f"{tag!r} is not {model.name}: it {reason} ({server}); {fix}")

    if (answer.get("remote_host") or answer.get("remote_model")) and not settings.allow_cloud:
        raise wrong(
            "runs on another machine, and the texts would go there",
            f"{pull}, or give allow_cloud=True",
        )
    capabilities = answer.get("capabilities")
    if isinstance(capabilities, list) and "embedding" not in capabilities:
        raise wrong("does not embed texts")
    facts = _object(answer.get("model_info"))
    architecture = facts.get("general.architecture")
    verified = model.family.ollama.architectures
    if verified and architecture is not None and architecture not in verified:
        raise wrong(f"has the architecture {shown(ascii(architecture))}")
    width = facts.get(f"{architecture}.embedding_length")
    if verified and width is not None and width != model.width:
        raise wrong(f"has vectors of {shown(ascii(width))} numbers, not {model.width}")
    dense = _dense_layers(answer.get("tensors"))
    if dense is not None and dense < model.dense_layers:
        raise wrong(
            f"lacks Dense layers ({dense} of {model.dense_layers}) and gives other vectors",
            f"{pull}; or write the checkpoint again: gemma-embed export gguf",
        )
    reported = _object(answer.get("details")).get("quantization_level")
    quantization = str(listed_quantization or reported or UNKNOWN)
    if quantization.upper() == "F16":
        raise wrong(
            "is stored as F16, as ollama create writes a checkpoint's folder, with a space before "
            "every text that the model was not trained with (cosine down to 0.993)",
            f"{pull}, or write the folder with gemma-embed export gguf and create it from that "
            "file",
        )
    context = facts.get(f"{architecture}.context_length")
    if isinstance(context, bool) or not isinstance(context, int) or context <= 0:
        context = model.context
    limit = min(context, model.context, *_stated_limits(answer.get("parameters")))
    # llama.cpp's default for this kind of vocabulary. Ollama's converter of folders leaves it.
    spaced = facts.get("tokenizer.ggml.model") == "llama" and (
        facts.get("tokenizer.ggml.add_space_prefix") is not False
    )
    return quantization, limit, bool(verified) and spaced


def loaded_context(answer: Mapping[str, Any], tag: str) -> int | None:
    """Return the context with which a server has loaded a model, by its ``/api/ps``.

    It follows from the server's own settings as well as from the model's. Servers before 0.10 do
    not tell it.
    """
    entries = answer.get("models")
    for entry in map(_object, entries if isinstance(entries, list) else ()):
        context = entry.get("context_length")
        if full_name(str(entry.get("model"))) == full_name(tag) and type(context) is int:
            return context if context > 0 else None
    return None


def _stated_limits(parameters: object) -> list[int]:
    """Return what a Modelfile says on the tokens of a text, which is read no further than either.

    Servers before 0.30 compute a text in parts of ``num_batch`` instead; for them this is too low.
    """
    said = parameters if isinstance(parameters, str) else ""
    stated = re.findall(r"^num_(?:ctx|batch)\s+(\d{1,9})$", said, re.MULTILINE)
    return [limit for limit in map(int, stated) if limit > 0]


def _object(answer: object) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {}


def _dense_layers(tensors: object) -> int | None:
    """Count the Dense layers among tensor names; None without names.

    Ollama's library names them ``dense.0.weight`` on, llama.cpp's converter ``dense_2.weight``.
    """
    if not isinstance(tensors, list) or not tensors:
        return None
    names = {str(tensor.get("name")) for tensor in tensors if isinstance(tensor, dict)}
    return sum(bool(re.fullmatch(r"dense[._]\d+\.weight", name)) for name in names)
