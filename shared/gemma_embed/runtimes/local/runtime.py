"""What the runtimes in this process share: settings, loading, and a text's way to its vector."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from gemma_embed.errors import ConfigurationError, OutOfMemory
from gemma_embed.identity import Identity
from gemma_embed.models import BUNDLED, EMBEDDINGGEMMA_300M, Model
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_not_overwritten
from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.local.memory import is_out_of_memory, within_memory
from gemma_embed.runtimes.local.pages import token_pages
from gemma_embed.vectors import Vectors


class Network(Protocol):
    """A loaded model. Called by one thread at a time."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many."""

    def batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Group rows of so many tokens as they are computed best: each exactly once, largest first.

        A batch that cannot be computed then fails at the start, not after everything else.
        """

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width)."""


class LocalRuntime(ABC):
    """Loads a checkpoint from a folder or the Hugging Face hub, on first use.

    One batch is computed at a time; threads wait for each other. A batch that does not fit into
    memory is halved until it does. Copies share the loaded model, pickles carry only the settings,
    a forked process loads its own.
    """

    _name: ClassVar[str]

    def __init__(
        self,
        model: str | Path | None,
        *,
        revision: str | None,
        precision: str,
        offline: bool,
    ) -> None:
        """Check the options that all have; nothing is loaded.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        check_kind("model", model, str, Path, None)
        check_kind("revision", revision, str, None)
        check_kind("offline", offline, bool)
        self._source = str(model) if model is not None else EMBEDDINGGEMMA_300M.repository
        self._model = BUNDLED if self._source == BUNDLED.repository else EMBEDDINGGEMMA_300M
        self._revision = revision
        self._precision = precision
        self._offline = offline
        self._start()

    def _start(self) -> None:
        # By process: neither a lock that another thread held nor the threads that compute survive
        # a fork.
        self._locks = {os.getpid(): threading.RLock()}
        self._loaded: dict[int, Network] = {}
        self._checkpoint: Checkpoint | None = None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: what makes an equal runtime elsewhere."""

    @abstractmethod
    def _require_packages(self) -> None:
        """Raise ``MissingDependency`` if a package is not installed."""

    @abstractmethod
    def _open(self, checkpoint: Checkpoint) -> Network:
        """Load a checkpoint."""

    def _found(self) -> Checkpoint:
        folder = model_folder(self._source, self._revision, offline=self._offline)
        return Checkpoint.read(folder, self._model)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({settings})"

    def __getstate__(self) -> dict[str, object]:
        left_here = {"_locks", "_loaded", "_checkpoint"}
        return {name: value for name, value in self.__dict__.items() if name not in left_here}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # Settings never change, and a second copy of the weights would serve nobody.
        return self

    @property
    def description(self) -> str:
        """The class, as error messages name it."""
        return type(self).__name__

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
            runtime=self._name,
            precision=self._precision,
            max_tokens=checkpoint.max_tokens,
        )

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors; see ``Runtime.embed``. Too long texts are reported before any work.

        Raises:
            ConfigurationError: If the model cannot be loaded with these options.
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

        lengths = {row: len(ids) for row, ids in page.items()}
        for batch in network.batches(lengths):
            for part, vectors in within_memory(compute, batch, lengths):
                yield Batch(part, vectors)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of prompted texts, special tokens included."""
        return [len(ids) for ids in self._tokenized(texts)]

    def _tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        with self._lock:
            return self._load().tokenize(texts)

    @property
    def _lock(self) -> threading.RLock:
        return self._locks.get(os.getpid()) or self._locks.setdefault(
            os.getpid(), threading.RLock()
        )

    def _read(self) -> Checkpoint:
        with self._lock:
            if self._checkpoint is None:
                self._require_packages()
                self._checkpoint = self._found()
            return self._checkpoint

    def _load(self) -> Network:
        with self._lock:
            if os.getpid() not in self._loaded:
                checkpoint = self._read()
                try:
                    self._loaded[os.getpid()] = self._open(checkpoint)
                except Exception as error:  # Libraries raise any.
                    if not is_out_of_memory(error):
                        raise
                    raise OutOfMemory(
                        f"memory does not suffice for the model in {checkpoint.folder}; free some, "
                        "or use a smaller dtype or precision, or another device"
                    ) from error
            return self._loaded[os.getpid()]


def check_kind(name: str, value: object, *kinds: type | None) -> None:
    """Check an option's type.

    Raises:
        ConfigurationError: If it is another.
    """
    if not any(value is None if kind is None else isinstance(value, kind) for kind in kinds):
        names = " or ".join("None" if kind is None else kind.__name__ for kind in kinds)
        raise ConfigurationError(f"{name}={value!r} must be {names}")
