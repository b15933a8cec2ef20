"""What the runtimes that ask a server have in common: settings, pickles, and the way of a list."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from gemma_embed.errors import InvalidInput
from gemma_embed.identity import Identity
from gemma_embed.models import Model
from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.runtimes.per_process import PerProcess
from gemma_embed.runtimes.remote.endpoint import Endpoint

if TYPE_CHECKING:
    from gemma_embed.runtimes.remote.service import Service

S = TypeVar("S", bound="Service")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A runtime's checked options: all that a pickle of it contains, but for secrets.

    Attributes:
        model: The row of the model table.
        name: What the server calls the model.
        endpoint: The server.
        timeout: Deadline of an exchange with texts, in seconds.
        max_batch: Most texts in a request.
        max_batch_bytes: Most bytes of text in a request, but for a longer text alone.
        concurrency: Most requests with texts in flight, over all threads.
        max_retries: How often a request is repeated.
    """

    model: Model
    name: str
    endpoint: Endpoint
    timeout: float
    max_batch: int
    max_batch_bytes: int
    concurrency: int
    max_retries: int


class RemoteRuntime(Runtime, Generic[S]):
    """A model on a server; see ``gemma_embed.runtimes.remote`` for what a kind of server adds.

    Asks nothing before first use. Threads share the connections and the limit of requests in
    flight; each process has its own. A copy is the object itself, since its settings never change;
    a pickle contains the settings, and of headers only their names and those values that are an
    ``EnvironmentVariable``.

    Interrupted or cancelled, it sends nothing more and breaks off the requests in flight, so that
    the server stops too; none of its threads keeps a program from ending.
    """

    _server: ClassVar[str]
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
        endpoint = self._settings.endpoint.without_secrets()
        return {"settings": dataclasses.replace(self._settings, endpoint=endpoint)}

    def __setstate__(self, state: dict[str, Settings]) -> None:
        RemoteRuntime.__init__(self, state["settings"])

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    @property
    def model(self) -> Model:
        """The row of the model table."""
        return self._settings.model

    @property
    def description(self) -> str:
        """The server, as error messages name it."""
        return f"{self._server} ({self._settings.endpoint.origin})"

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, but for the headers, which may be secret."""
        options = {
            field.name: getattr(self._settings, field.name)
            for field in dataclasses.fields(self._settings)
        }
        del options["endpoint"]
        return {
            "model": options.pop("name"),
            "host": self._settings.endpoint.url,
            **{name: value for name, value in options.items() if name != "model"},
        }

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Asks the server once; loads nothing.

        Raises:
            ModelError: If the server does not have such a model, or would give other vectors.
            ServerRefused: If it does not answer such questions.
            TransientError: If it cannot be reached now.
        """
        return self._service.get().identity()

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
        sizes = []
        for row, text in enumerate(texts):
            try:
                sizes.append(len(text.encode()))
            except (AttributeError, UnicodeEncodeError):
                raise InvalidInput(
                    "not a string of Unicode characters that can be encoded "
                    "(it is bytes, None, or contains half of a surrogate pair)",
                    index=row,
                ) from None
        return self._service.get().embed(texts, sizes, truncate)

    def close(self) -> None:
        """Close connections kept open, once calls under way are done.

        The runtime stays usable: the next call opens new ones, and checks the server again.
        """
        self._service.clear()
