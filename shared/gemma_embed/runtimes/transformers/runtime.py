"""The model in this process, on plain transformers and safetensors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.identity import Identity
from gemma_embed.models import BUNDLED, EMBEDDINGGEMMA_300M, Model
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_not_overwritten
from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.local.memory import within_memory
from gemma_embed.runtimes.local.pages import token_pages
from gemma_embed.runtimes.transformers.forks import check_not_forked
from gemma_embed.runtimes.transformers.network import DType, Network
from gemma_embed.vectors import Vectors, checked_vectors, plan_batches

# Two CPU cores were fastest from 1,024 to 4,096; beyond that only memory grows.
_TOKENS_PER_BATCH = 2048


class TransformersRuntime:
    """EmbeddingGemma, or a fine-tune of it, loaded from a folder or the Hugging Face hub.

    Loads on first use. One forward pass runs at a time; threads wait for each other. Copies share
    the loaded model, pickles carry only the settings. A batch that does not fit into memory is
    halved until it does. Workers must be spawned, not forked, once torch has computed; see
    ``forks``.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: DType = "float32",
        offline: bool = False,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            model: A folder, or a hub id; None for Google's EmbeddingGemma 300M; ``bundled`` for
                the small demonstration model that comes with this package.
            revision: The hub's branch, tag or commit.
            device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``...; None for a GPU where there is one.
            dtype: ``float32`` gives the reference's vectors on every device; ``bfloat16`` is
                faster on hardware that has it, and close (cosine >= 0.999).
            offline: Never ask the hub.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        if dtype not in get_args(DType):
            reason = (
                "float16 overflows in this model (activations reach 264,000, it ends at 65,504) "
                "and gives NaN"
                if "float16" in str(dtype)
                else "it is unknown"
            )
            raise ConfigurationError(f"dtype={dtype!r}: {reason}; use 'float32' or 'bfloat16'")
        _check_kind("model", model, str, Path, None)
        _check_kind("revision", revision, str, None)
        _check_kind("device", device, str, None)
        _check_kind("offline", offline, bool)
        self._source = str(model) if model is not None else EMBEDDINGGEMMA_300M.repository
        self._model = BUNDLED if self._source == BUNDLED.repository else EMBEDDINGGEMMA_300M
        self._revision = revision
        self._device = device
        self._dtype = dtype
        self._offline = offline
        self._start()

    def _start(self) -> None:
        # By process: a forked child may have been born while another thread held the lock.
        self._locks = {os.getpid(): threading.RLock()}
        self._checkpoint: Checkpoint | None = None
        self._network: Network | None = None

    @property
    def _lock(self) -> threading.RLock:
        return self._locks.get(os.getpid()) or self._locks.setdefault(
            os.getpid(), threading.RLock()
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: what makes an equal runtime elsewhere."""
        return {
            "model": self._source,
            "revision": self._revision,
            "device": self._device,
            "dtype": self._dtype,
            "offline": self._offline,
        }

    def __repr__(self) -> str:
        return f"TransformersRuntime({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"

    def __getstate__(self) -> dict[str, object]:
        left_here = {"_locks", "_checkpoint", "_network"}
        return {name: value for name, value in self.__dict__.items() if name not in left_here}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def __copy__(self) -> TransformersRuntime:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> TransformersRuntime:
        # Settings never change, and a second copy of the weights would serve nobody.
        return self

    @property
    def model(self) -> Model:
        """The row of the model table."""
        return self._model

    @property
    def prompts(self) -> Prompts:
        """The checkpoint's prompts. Reads its JSON files, not its weights."""
        return self._read().prompts

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Reads a local folder's weights once, to name them."""
        checkpoint = self._read()
        return Identity(
            model=self._model.name,
            source=self._source,
            revision=checkpoint.revision,
            runtime="transformers",
            precision=self._dtype,
            max_tokens=checkpoint.max_tokens,
        )

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors; see ``Runtime.embed``. Too long texts are reported before any work.

        Raises:
            ConfigurationError: If the device cannot be used, or this process was forked from one
                that had computed.
            ModelError: If the model is missing, damaged, not the one that it should be, or was
                written over since it was loaded.
            OutOfMemory: If the model, or a text alone, does not fit into memory.
            BadResponse: If the model computes NaN, infinity or zeros for a text.
        """
        network = self._load()
        checkpoint = self._read()
        check_not_overwritten(checkpoint.files)
        limit = checkpoint.max_tokens
        for page in token_pages(self._tokenized, texts, limit, truncate=truncate):
            if isinstance(page, TooLong):
                yield page
            else:
                yield from self._computed(network, page)

    def _computed(self, network: Network, page: dict[int, list[int]]) -> Iterator[Batch]:
        def compute(part: list[int]) -> Vectors:
            with self._lock:
                return network.forward([page[row] for row in part])

        rows = list(page)
        lengths = {row: len(ids) for row, ids in page.items()}
        sizes = list(lengths.values())
        for members in plan_batches(sizes, len(sizes), _TOKENS_PER_BATCH, padded=network.padded):
            batch = [rows[member] for member in members]
            for part, vectors in within_memory(compute, batch, lengths):
                yield Batch(
                    part,
                    checked_vectors(vectors, part, self._model.width, "the model"),
                    sum(lengths[row] for row in part),
                )

    def _tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        with self._lock:
            return self._load().tokenize(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of prompted texts, special tokens included."""
        return [len(ids) for ids in self._tokenized(texts)]

    def _read(self) -> Checkpoint:
        with self._lock:
            if self._checkpoint is None:
                _require_transformers()
                folder = model_folder(self._source, self._revision, offline=self._offline)
                self._checkpoint = Checkpoint.read(folder, self._model)
            return self._checkpoint

    def _load(self) -> Network:
        check_not_forked()
        with self._lock:
            if self._network is None:
                self._network = Network(self._read(), self._device, self._dtype)
            return self._network


def _check_kind(name: str, value: object, *kinds: type | None) -> None:
    if not any(value is None if kind is None else isinstance(value, kind) for kind in kinds):
        names = " or ".join("None" if kind is None else kind.__name__ for kind in kinds)
        raise ConfigurationError(f"{name}={value!r} must be {names}")


def _require_transformers() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "runtime='transformers' needs torch, transformers and safetensors: "
            'pip install "gemma-embed[transformers]"'
        ) from error
