"""From a model's name to a folder on this disk."""

from __future__ import annotations

import re
from pathlib import Path

import gemma_embed
from gemma_embed.errors import ConfigurationError, ModelNotFound
from gemma_embed.models import BUNDLED, EMBEDDINGGEMMA_300M

_FILES = ["*.json", "tokenizer.model"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(
    model: str, revision: str | None, *, offline: bool, graph: str | None = None
) -> Path:
    """Find a model's folder, and download it if it is a hub id that is not on this disk yet.

    What is already on the disk is used without asking the hub, so nothing leaves the device once
    a model is there; name a ``revision`` to move to another.

    Args:
        model: A folder, ``bundled``, or a hub id such as ``google/embeddinggemma-300m``.
        revision: The hub's branch, tag or commit; None for ``main``.
        offline: Never ask the hub.
        graph: An ONNX graph that is wanted instead of safetensors files: its path in the
            repository.

    Raises:
        ConfigurationError: If a revision is given for a folder, or ``model`` is neither.
        ModelNotFound: If it is not there: missing, gated, or out of reach.
    """
    if model == BUNDLED.repository:
        return Path(gemma_embed.__file__).parent / "bundled"
    try:
        folder = Path(model).expanduser()
    except RuntimeError as error:
        raise ModelNotFound(
            f"{model!r} names a home folder that this system does not know"
        ) from error
    if folder.is_dir():
        if revision is not None:
            raise ConfigurationError(
                f"{model!r} is a folder, so revision={revision!r} means nothing"
            )
        return folder
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise ModelNotFound(f"{model!r} is neither an existing folder nor a hub id like owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    files = [*_FILES, graph, f"{graph}_data*"] if graph else [*_FILES, "*.safetensors"]
    try:
        found = Path(
            snapshot_download(model, revision=revision, allow_patterns=files, local_files_only=True)
        )
        if offline or _is_complete(found, graph):
            return found
    except LocalEntryNotFoundError as error:
        if offline:
            raise ModelNotFound(
                _ways_out(model, f"{model} is not on this disk, and offline=True")
            ) from error
    except HFValidationError as error:
        raise ModelNotFound(f"{model!r} is not a valid hub id") from error
    try:
        found = Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except GatedRepoError as error:
        raise ModelNotFound(
            _ways_out(model, f"{model} is gated: its licence must be accepted")
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{model} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            _ways_out(model, f"the hub knows no {model}, or shows it only to who is logged in")
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise ModelNotFound(_unreachable(model)) from error
    except OSError as error:
        raise ModelNotFound(
            f"{model} could not be downloaded to {HF_HUB_CACHE} ({error.strerror or error}); make "
            "space there, or let HF_HOME name a folder that may be written to"
        ) from error
    except Exception as error:  # What is no hub, a portal say, may break its library anywhere.
        raise ModelNotFound(_unreachable(model)) from error
    if not _is_complete(found, graph):
        # Out of reach, the hub's library hands back what an earlier download left, without a word.
        raise ModelNotFound(_unreachable(model))
    return found


def _unreachable(model: str) -> str:
    return _ways_out(model, f"{model} is not on this disk whole, and the hub could not be reached")


def _is_complete(folder: Path, graph: str | None) -> bool:
    # An interrupted download leaves a snapshot folder with some of its files.
    if graph:
        return all((folder / name).exists() for name in ("config.json", "tokenizer.json", graph))
    wanted = ("config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json")
    return all((folder / name).exists() for name in wanted) and any(folder.glob("*.safetensors"))


def _ways_out(model: str, what: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"{what} (its place is {HF_HUB_CACHE}). Three ways out: (1) accept the licence on "
        f"https://huggingface.co/{model} and run: hf auth login, then: hf download {model}; "
        f"(2) use a server: ollama pull {EMBEDDINGGEMMA_300M.ollama_tag}, then runtime='ollama'; "
        "(3) name a local folder that holds the model"
    )
