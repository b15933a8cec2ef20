"""From a model's name to a folder on this disk."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path

import gemma_embed
from gemma_embed.errors import ConfigurationError, ModelNotFound
from gemma_embed.files import expanded
from gemma_embed.models import BUNDLED, is_ollama_tag, model_of_repository
from gemma_embed.runtimes.local.layout import missing_file

# What a repository may lack, and what decides prompts and limits where it is there.
_PROMPTS = "config_sentence_transformers.json"
_OPTIONAL = (
    _PROMPTS,
    "sentence_bert_config.json",
    "tokenizer_config.json",
)
logger = logging.getLogger("gemma_embed")

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def model_folder(
    model: str, revision: str | None, *, offline: bool, graph: str | None = None
) -> Path:
    """Find a model's folder, and download it if it is a hub id that is not on this disk yet.

    What is already on the disk is used without asking the hub, so nothing leaves the device once
    a model is there; name a ``revision`` to move to another.

    Args:
        model: A folder, ``bundled``, or a hub id such as ``owner/name``.
        revision: The hub's branch, tag or commit; None for ``main``.
        offline: Never ask the hub.
        graph: An ONNX graph that is wanted instead of safetensors files: its path in the
            repository.

    Raises:
        ConfigurationError: If a revision is given for a folder, or the name's home folder is
            unknown.
        ModelNotFound: If it is not there: missing, gated, or out of reach.
    """
    if model == BUNDLED.repository:
        return Path(gemma_embed.__file__).parent / "bundled"
    folder = expanded(model)
    if folder.is_dir():
        if revision is not None:
            raise ConfigurationError(
                f"{model!r} is a folder, so revision={revision!r} has no meaning"
            )
        return folder
    if not _HUB_ID.fullmatch(model) or _is_file(folder):
        raise ModelNotFound(_not_a_model(model, folder))
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    weights = [graph, f"{graph}_data*", f"{graph}.data*"] if graph else ["*.safetensors"]
    files = ["*.json", *weights]
    asked = not (offline or HF_HUB_OFFLINE)
    because = "offline=True" if offline else "HF_HUB_OFFLINE=1 is set"
    if asked:
        because = "the hub could not be reached"
    incomplete = f"{model} is not completely on this disk, and {because}"
    try:
        found = Path(
            snapshot_download(model, revision=revision, allow_patterns=files, local_files_only=True)
        )
        missing = missing_file(found, graph)
        if missing is None and asked and not _not_asked_for(model, found):
            return found
    except HFValidationError as error:
        raise ModelNotFound(f"{model!r} is not a valid hub id") from error
    except LocalEntryNotFoundError as error:
        if not asked:
            what = f"{model} is not on this disk, and {because}"
            raise ModelNotFound(_advice(model, what)) from error
    if asked:
        try:
            found = Path(snapshot_download(model, revision=revision, allow_patterns=files))
            _ask_for_optional_files(model, found)
        except Exception as error:  # An answer that is not a hub's may break its library anywhere.
            raise ModelNotFound(_refusal(model, revision, error, incomplete)) from error
        missing = missing_file(found, graph)
    if missing is not None:
        # Out of reach, the hub's library silently returns what an earlier download left.
        raise ModelNotFound(_advice(model, f"{incomplete}, or has no {missing} of it"))
    unknown = _not_asked_for(model, found)
    if asked and unknown:
        # It was reached, and has none of them.
        logger.warning(
            "that %s has no %s cannot be noted in %s, so the hub is asked again at every start; "
            "let HF_HOME name a folder that may be written to",
            model,
            " and no ".join(unknown),
            HF_HUB_CACHE,
        )
    elif _PROMPTS in unknown:
        logger.warning(
            "%s has no %s on this disk, and %s, so nobody knows whether it has prompts of its own: "
            "the model card's are used. To be sure, run: hf download %s",
            model,
            _PROMPTS,
            because,
            model,
        )
    return found


def _not_asked_for(model: str, folder: Path) -> list[str]:
    """Return optional files that are absent, and that the hub was not asked for."""
    from huggingface_hub import try_to_load_from_cache

    return [
        name
        for name in _OPTIONAL
        # The path, or a mark that the repository has none; None is unknown.
        if try_to_load_from_cache(model, name, revision=folder.name) is None
    ]


def _ask_for_optional_files(model: str, folder: Path) -> None:
    """Ask the hub for what is absent; its library remembers which files a repository lacks."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for name in _not_asked_for(model, folder):
        with suppress(RemoteEntryNotFoundError):
            hf_hub_download(model, name, revision=folder.name)


def _is_file(path: Path) -> bool:
    return path.is_file() or path.suffix.lower() in (".gguf", ".safetensors")


def _not_a_model(model: str, folder: Path) -> str:
    what = f"{model!r} is neither an existing folder nor a hub id like owner/name"
    if folder.suffix.lower() == ".gguf":
        return (
            f"{model!r} is a GGUF file, which this runtime does not read: "
            f"GgufRuntime({model!r}) does; or name a folder of safetensors files"
        )
    if _is_file(folder):
        return f"{model!r} is a file; name the model's folder, {str(Path(model).parent)!r}"
    if is_ollama_tag(model):
        return f"{what}; if it is a model of an Ollama server, use runtime='ollama'"
    return what


def _refusal(model: str, revision: str | None, error: Exception, incomplete: str) -> str:
    """Say what an exception of a download means, and what to do."""
    from huggingface_hub import errors
    from huggingface_hub.constants import HF_HUB_CACHE

    if isinstance(error, errors.GatedRepoError):
        return _advice(model, f"{model} is gated: its licence must be accepted", gated=True)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model} has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return _advice(model, f"the hub does not know {model}, or shows it to its members only")
    online = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ConnectionError)
    if isinstance(error, OSError) and not isinstance(error, online):
        return (
            f"{model} could not be downloaded to {HF_HUB_CACHE} ({error.strerror or error}); make "
            "space there, or let HF_HOME name a folder that may be written to"
        )
    return _advice(model, incomplete)


def _advice(model: str, what: str, *, gated: bool = False) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    row = model_of_repository(model)
    known = model == row.repository
    ways = [f"where the hub can be reached, run: hf download {model}"]
    if gated or (known and row.gated):
        ways[0] = (
            f"accept the licence on https://huggingface.co/{model} and run: hf auth login, then: "
            f"hf download {model}"
        )
    if known:
        ways.append(f"use a server: ollama pull {row.ollama_tag}, then runtime='ollama'")
    place = str(Path(model).absolute())
    ways.append(f"name a local folder that holds the model; there is no folder {place!r}")
    listed = "; ".join(f"({number}) {way}" for number, way in enumerate(ways, 1))
    return f"{what} (its place is {HF_HUB_CACHE}). Ways out: {listed}"
