"""Every error this package raises.

EmbeddingError                               has ``index``: which text, where one text is at fault;
│                                            ``attempts`` and ``elapsed``, where requests failed
├── ConfigurationError   (also ValueError)   an option is wrong; raised by constructors
├── MissingDependency    (also ImportError)  an optional package is not installed
├── InvalidInput         (also ValueError)   a text, title or list cannot be embedded
│   └── InputTooLong                         more tokens than the model reads; has ``tokens``
├── ModelError                               the model is not the one asked for
│   ├── ModelNotFound                        missing, gated, or not pulled
│   ├── ModelCorrupt                         files damaged or incomplete
│   ├── WrongModel                           would give other vectors than EmbeddingGemma's
│   └── ModelChanged                         other weights under the same name, while in use
├── OutOfMemory                              the model, or one text, is too much; ``tokens``
├── BadResponse                              what a runtime returned cannot be right
├── StoreError                               the embedding store's file cannot be used
├── CollectionError                          a vector store's collection cannot be trusted
│   ├── CollectionMismatch                   it holds other vectors than this embedder makes
│   ├── CollectionDamaged                    it cannot be read or searched
│   ├── CollectionIncomplete                 it lacks rows after an ingestion; has ``report``
│   └── CollectionLocked                     another process is writing to its folder
├── ServerRefused                            the server answered, and asking again will not help
└── TransientError                           asking again later may help
    ├── ConnectionFailed
    ├── ServerTimeout
    ├── ServerBusy
    └── ServerFailed

Messages say what failed, where (an index, never the text), and how to fix it.
"""


class EmbeddingError(Exception):
    """Base of every error raised on purpose by this package.

    Attributes:
        index: Position in the caller's list of the text at fault; None if it is not one text.
        attempts: Requests that failed in a row; 0 if every request was answered, for example by
            a server that says that it has no such model.
        elapsed: Seconds from the first of them to the error.
    """

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        attempts: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.index = index
        self.attempts = attempts
        self.elapsed = elapsed

    def __str__(self) -> str:
        message = str(self.args[0])
        return message if self.index is None else f"text at index {self.index}: {message}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exception.__reduce__ would call the constructor without the keyword arguments.
        return (_restored, (type(self), self.args[0], self.__dict__))


def _restored(kind: type[EmbeddingError], message: str, state: dict[str, object]) -> EmbeddingError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class ConfigurationError(EmbeddingError, ValueError):
    """An option has a value that cannot work."""


class MissingDependency(EmbeddingError, ImportError):
    """An optional package is needed and not installed; the message has the install command."""


class InvalidInput(EmbeddingError, ValueError):
    """Something handed in cannot be embedded; ``index`` is None when the list itself is wrong."""


class InputTooLong(InvalidInput):
    """A text has more tokens, its prompt counted, than the model reads.

    Attributes:
        tokens: Tokens of the prompted text, special tokens included; None if a server does not
            say, or they are too many to count.
        limit: Tokens that the model reads.
    """

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        tokens: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, index=index)
        self.tokens = tokens
        self.limit = limit


class ModelError(EmbeddingError):
    """The model is not what was asked for."""


class ModelNotFound(ModelError):
    """The weights are missing, gated, or not pulled."""


class ModelCorrupt(ModelError):
    """A file of the model is damaged, incomplete, or of a kind that is never loaded."""


class WrongModel(ModelError):
    """The model, or the software that would run it, gives other vectors than EmbeddingGemma's."""


class ModelChanged(ModelError):
    """There are other weights now under the same name, on the server or in the folder."""


class OutOfMemory(EmbeddingError):
    """Memory does not suffice for the model, or even for one text alone.

    Attributes:
        tokens: Tokens of the prompted text, special tokens included; 0 for the model.
    """

    def __init__(self, message: str, *, index: int | None = None, tokens: int = 0) -> None:
        super().__init__(message, index=index)
        self.tokens = tokens


class BadResponse(EmbeddingError):
    """What a runtime returned cannot be right: count, width, a non-finite or all-zero vector."""


class StoreError(EmbeddingError):
    """The embedding store's file cannot be read or written."""


class CollectionError(EmbeddingError):
    """A vector store's collection is not what a search could rely on."""


class CollectionMismatch(CollectionError):
    """The collection's vectors are of another space, or of a space that it does not name."""


class CollectionDamaged(CollectionError):
    """The collection cannot be read or searched."""


class CollectionIncomplete(CollectionError):
    """Rows are missing after an ingestion.

    Attributes:
        report: What was done and what is missing.
    """

    def __init__(self, message: str, *, index: int | None = None, report: object = None) -> None:
        super().__init__(message, index=index)
        self.report = report


class CollectionLocked(CollectionError):
    """Another process is writing to the collection's folder."""


class ServerRefused(EmbeddingError):
    """The server answered with a refusal that repeating cannot change."""


class TransientError(EmbeddingError):
    """The server could not be used now."""


class ConnectionFailed(TransientError):
    """No connection, or the connection broke."""


class ServerTimeout(TransientError):
    """No answer within the time allowed."""


class ServerBusy(TransientError):
    """The server said that it is overloaded."""


class ServerFailed(TransientError):
    """The server, or something behind it, broke down while working."""
