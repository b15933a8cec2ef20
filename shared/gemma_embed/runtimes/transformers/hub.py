"""From a model's name to a folder on this disk."""

from __future__ import annotations

import re
from pathlib import Path

import gemma_embed
from gemma_embed.errors import ConfigurationError, ModelNotFound
from gemma_embed.models import BUNDLED

_FILES = ["*.json", "*.safetensors", "tokenizer.model"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(model: str, revision: str | None, *, offline: bool) -> Path:
    """Find a model's folder, and download it if it is a hub id that is not on this disk yet.

    What is already on the disk is used without asking the hub, so nothing leaves the device once
    a model is there; name a ``revision`` to move to another.

    Args:
        model: A folder, ``bundled``, or a hub id such as ``google/embeddinggemma-300m``.
        revision: The hub's branch, tag or commit; None for ``main``.
        offline: Never ask the hub.

    Raises:
        ConfigurationError: If a revision is given for a folder, or ``model`` is neither.
        ModelNotFound: If it is not there: missing, gated, or out of reach.
    """
    if model == BUNDLED.repository:
        return Path(gemma_embed.__file__).parent / "bundled"
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigurationError(
                f"{model!r} is a folder, so revision={revision!r} means nothing"
            )
        return folder
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise ModelNotFound(f"{model!r} is neither an existing folder nor a hub id like owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=_FILES, local_files_only=True
            )
        )
        if offline or _is_complete(found):
            return found
    except LocalEntryNotFoundError as error:
        if offline:
            raise ModelNotFound(
                _ways_out(f"{model} is not on this disk, and offline=True")
            ) from error
    except HFValidationError as error:
        raise ModelNotFound(f"{model!r} is not a valid hub id") from error
    try:
        found = Path(snapshot_download(model, revision=revision, allow_patterns=_FILES))
    except GatedRepoError as error:
        raise ModelNotFound(_ways_out(f"{model} is gated: its licence must be accepted")) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{model} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            _ways_out(f"the hub knows no {model}, or shows it only to who is logged in")
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(_ways_out(_unreachable(model))) from error
    if not _is_complete(found):
        # Out of reach, the hub's library hands back what an earlier download left, without a word.
        raise ModelNotFound(_ways_out(_unreachable(model)))
    return found


def _unreachable(model: str) -> str:
    return f"{model} is not on this disk whole, and the hub could not be reached"


def _is_complete(folder: Path) -> bool:
    # An interrupted download leaves a snapshot folder with some of its files.
    wanted = ("config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json")
    return all((folder / name).exists() for name in wanted) and any(folder.glob("*.safetensors"))


def _ways_out(what: str) -> str:
    return (
        f"{what}. Three ways out: (1) accept the licence on https://huggingface.co/google/"
        "embeddinggemma-300m and run: hf auth login; (2) use a server: ollama pull embeddinggemma, "
        "then runtime='ollama'; (3) name a local folder that holds the model"
    )
