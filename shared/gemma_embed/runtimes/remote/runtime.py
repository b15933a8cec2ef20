"""What the runtimes that ask a server have in common: settings, pickles, and the way of a list."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from gemma_embed.identity import Identity
from gemma_embed.inputs import checked_texts
from gemma_embed.models import Model
from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.runtimes.options import checked_count, checked_seconds
from gemma_embed.runtimes.per_process import PerProcess
from gemma_embed.runtimes.remote.headers import CheckedHeaders, without_secrets
from gemma_embed.vectors import plan_batches

if TYPE_CHECKING:
    from gemma_embed.runtimes.remote.service import Service

S = TypeVar("S", bound="Service")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A runtime's checked options: all that a pickle of it contains, but for secrets.

    Attributes:
        row: The row of the model table.
        model: What the server calls the model.
        host: The server: scheme, host, port and path; never a user name, a password or a query.
        headers: Names and values. Secret: no ``repr`` or message shows them.
        timeout: Deadline of an exchange with texts, in seconds.
        max_batch: Most texts in a request.
        max_batch_bytes: Most bytes of text in a request, but for a longer text alone.
        concurrency: Most requests with texts in flight, over all threads.
        max_retries: How often a request is repeated.

    Raises:
        ConfigurationError: If a number has a value that cannot work.
    """

    row: Model = dataclasses.field(repr=False)
    model: str
    host: str
    headers: CheckedHeaders = dataclasses.field(repr=False)
    timeout: float
    max_batch: int
    max_batch_bytes: int
    concurrency: int
    max_retries: int

    def __post_init__(self) -> None:
        checked_seconds("timeout", self.timeout)
        checked_count("max_batch", self.max_batch, 1)
        checked_count("max_batch_bytes", self.max_batch_bytes, 1)
        checked_count("concurrency", self.concurrency, 1)
        checked_count("max_retries", self.max_retries, 0)

    @property
    def origin(self) -> str:
        """The server without its path: what messages show."""
        return "/".join(self.host.split("/", 3)[:3])


class RemoteRuntime(Runtime, Generic[S]):
    """A model on a server; see ``gemma_embed.runtimes.remote`` for what a kind of server adds.

    Asks nothing before first use. Threads share the connections and the limit of requests in
    flight; each process has its own. A copy is the object itself, since its settings never change;
    a pickle contains the settings, and of headers only their names and those values that are an
    ``EnvironmentVariable``.

    Interrupted or cancelled, it sends nothing more and breaks off the requests in flight, so that
    the server stops too; none of its threads keeps a program from ending.
    """

    _settings: Settings

    def __init__(self, settings: Settings) -> None:
        """Make no connection."""
        self._settings = settings
        self._service: PerProcess[S] = PerProcess(self._connect)

    @abstractmethod
    def _connect(self) -> S:
        """Import what needs optional packages, and return the service; ask nothing.

        Raises:
            MissingDependency: If a package is missing.
            ConfigurationError: If a header or a proxy cannot be used.
        """

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({options})"

    def __getstate__(self) -> dict[str, object]:
        headers = without_secrets(self._settings.headers)
        return {"settings": dataclasses.replace(self._settings, headers=headers)}

    def __setstate__(self, state: dict[str, Settings]) -> None:
        RemoteRuntime.__init__(self, state["settings"])

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    @property
    def model(self) -> Model:
        """The row of the model table."""
        return self._settings.row

    @property
    def description(self) -> str:
        """The class and the server, as error messages name it."""
        return f"{type(self).__name__} ({self._settings.origin})"

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, but for the headers, which may be secret."""
        # Those that are shown.
        names = [field.name for field in dataclasses.fields(self._settings) if field.repr]
        return {name: getattr(self._settings, name) for name in names}

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Asks the server once, which may load the model.

        Raises:
            ModelError: If the server does not have such a model, or would give other vectors.
            ServerRefused: If it does not answer such questions.
            TransientError: If it cannot be reached now.
        """
        from gemma_embed.runtimes.remote.loop import run

        service = self._service.get()
        return run(service.alone(service.identify))

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors, batch by batch; see ``Runtime.embed``.

        A server does not say how many tokens a text has, so ``TooLong.tokens`` is None. It is
        always asked to refuse first; only a text that it refused is sent again, to be cut.

        Raises:
            ConfigurationError: If a header's value was left out of a pickle, or its environment
                variable is not set.
            InvalidInput: If a text cannot be encoded.
            ModelError: If the server lacks the model, or would give other vectors.
            BadResponse: If an answer cannot be right.
            ServerRefused: If the server refuses.
            TransientError: If it cannot be reached, is too busy or breaks down, after retries.
        """
        import asyncio

        from gemma_embed.runtimes.remote.loop import in_parallel, run

        most, texts = self._settings, checked_texts(texts)
        service = self._service.get()
        if not service.prepared:
            run(service.alone(service.prepare))
        batches = plan_batches(
            {row: service.size(text) for row, text in enumerate(texts)},
            most.max_batch_bytes,
            max_items=most.max_batch,
            padded=False,
        )
        # Set when a batch failed.
        work = partial(service.batch, texts, truncate, asyncio.Event())
        yield from in_parallel(work, batches, most.concurrency)

    def close(self) -> None:
        """Close open connections, once calls under way are done.

        The runtime stays usable: the next call opens new ones, and checks the server again.
        """
        self._service.clear()
