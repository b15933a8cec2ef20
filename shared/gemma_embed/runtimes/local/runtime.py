"""What the runtimes in this process share: settings, loading, and a text's way to its vector."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, Self

from gemma_embed.errors import ModelCorrupt, OutOfMemory, WrongModel
from gemma_embed.files import expanded
from gemma_embed.identity import Identity
from gemma_embed.models import (
    BUNDLED,
    EMBEDDINGGEMMA_300M,
    Model,
    model_of_config,
    model_of_repository,
)
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged, read_json
from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.local.in_flight import InFlight
from gemma_embed.runtimes.local.loading import explained
from gemma_embed.runtimes.local.memory import is_out_of_memory, within_memory
from gemma_embed.runtimes.local.pages import token_pages
from gemma_embed.runtimes.options import check_kind
from gemma_embed.runtimes.per_process import PerProcess
from gemma_embed.vectors import Vectors


class Network(Protocol):
    """A loaded model."""

    @property
    def in_flight(self) -> InFlight | None:
        """Computes the batches of large calls; None where one at a time is as fast."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many.

        May be called by several threads at once.
        """

    def batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Group rows of so many tokens as they are computed best: each exactly once, largest first.

        A batch that cannot be computed then fails at the start, not after everything else.
        """

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width). By one thread at a time."""


@dataclass
class _Loaded:
    """What a process has read of a model so far, and the lock of whoever uses it."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    checkpoint: Checkpoint | None = None
    network: Network | None = None


class LocalRuntime(Runtime):
    """Loads a checkpoint from a folder or the Hugging Face hub, on first use.

    One batch is computed at a time, or of large calls one a thread (``in_flight.py``); callers wait
    for each other. A batch that does not fit into memory is halved until it does. Copies share the
    loaded model, pickles carry only the settings, a forked process loads its own.
    """

    _name: ClassVar[str]

    def __init__(
        self, model: str | Path | None, *, revision: str | None, precision: str, offline: bool
    ) -> None:
        """Check the options that all have; nothing is loaded.

        Of a folder that exists, ``config.json`` is read, since it decides the model's row.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        check_kind("model", model, str, Path, None)
        check_kind("revision", revision, str, None)
        check_kind("offline", offline, bool)
        source = str(model) if model is not None else EMBEDDINGGEMMA_300M.repository
        self._source, self._model = _found(source)
        self._revision = revision
        self._precision = precision
        self._offline = offline
        self._per_process = PerProcess(_Loaded)

    @abstractmethod
    def _require_packages(self) -> None:
        """Raise ``MissingDependency`` if a package is not installed."""

    @abstractmethod
    def _open(self, checkpoint: Checkpoint) -> Network:
        """Load a checkpoint."""

    def _read(self) -> Checkpoint:
        """Find the model, download it if it is not on this disk, and judge it."""
        # Asked once, since the folder may change while the model is in use.
        graph = self._graph()
        folder = model_folder(self._source, self._revision, offline=self._offline, graph=graph)
        return Checkpoint.read(folder, self._model, graph)

    def _graph(self) -> str | None:
        """Return the place in the folder of the finished graph that is loaded; None for weights."""
        return None

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({settings})"

    def __getstate__(self) -> dict[str, object]:
        # Not by the constructor: a subclass may have one of its own.
        return {name: value for name, value in self.__dict__.items() if name != "_per_process"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _per_process=PerProcess(_Loaded))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # Settings never change, and a second copy of the weights would serve no one.
        return self

    @property
    def model(self) -> Model:
        """The row of the model table."""
        return self._model

    @property
    def prompts(self) -> Prompts:
        """The checkpoint's prompts. Reads its JSON files, not its weights."""
        return self._checkpoint().prompts

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Reads a local folder's weights if they are new to the cache."""
        checkpoint = self._checkpoint()
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
                overwritten since it was loaded.
            OutOfMemory: If the model, or a text alone, does not fit into memory.
        """
        network, checkpoint = self._load(), self._checkpoint()
        lock = self._per_process.get().lock
        check_unchanged(checkpoint.files, or_replaced=True)
        for page in token_pages(network.tokenize, texts, checkpoint.max_tokens, truncate=truncate):
            if isinstance(page, TooLong):
                yield page
                continue
            batches = list(network.batches({row: len(ids) for row, ids in page.items()}))
            crew = network.in_flight and network.in_flight.crew_for(len(batches))
            if crew:
                yield from crew.computed(lock, batches, page)
                continue
            for rows in batches:
                yield from within_memory(network.forward, lock, rows, page)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of prompted texts, special tokens included."""
        return [len(ids) for ids in self._load().tokenize(texts)]

    def _checkpoint(self) -> Checkpoint:
        loaded = self._per_process.get()
        with loaded.lock:
            if loaded.checkpoint is None:
                self._require_packages()
                loaded.checkpoint = self._read()
            return loaded.checkpoint

    def _load(self) -> Network:
        loaded = self._per_process.get()
        with loaded.lock:
            if loaded.network is None:
                checkpoint = self._checkpoint()
                try:
                    with explained(self._name):
                        loaded.network = self._open(checkpoint)
                except Exception as error:  # Libraries raise any.
                    if not is_out_of_memory(error):
                        raise
                    raise OutOfMemory(
                        f"memory does not suffice for the model in {checkpoint.folder}; free some, "
                        "or use a smaller dtype or precision, or another device"
                    ) from error
            return loaded.network


def _found(source: str) -> tuple[str, Model]:
    """Return what a name stands for now: a folder's complete path, and the row of its model."""
    folder = expanded(source)
    if source == BUNDLED.repository or not folder.is_dir():
        return source, model_of_repository(source)
    # A folder may be completed until the first use, which reports what is wrong with it.
    with suppress(ModelCorrupt, WrongModel):
        return str(folder), model_of_config(read_json(folder / "config.json"), folder)
    return str(folder), model_of_repository(source)
