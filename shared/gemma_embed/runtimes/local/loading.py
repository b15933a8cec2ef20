"""The libraries below: whether they are installed, and what their errors mean for a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from gemma_embed.errors import EmbeddingError, MissingDependency, ModelCorrupt, WrongModel
from gemma_embed.runtimes.local.memory import is_out_of_memory
from gemma_fast.errors import Damaged, Unsupported


@contextmanager
def loading(what: str, advice: str = "download the model again") -> Iterator[None]:
    """Say what failed and what to do where a library cannot load something.

    Args:
        what: Part of the model, and where it is.
        advice: What to do.

    Raises:
        ModelCorrupt: If it cannot be loaded. Errors that say why already are left as they are.
    """
    try:
        yield
    except (EmbeddingError, Damaged, Unsupported):
        raise
    except Exception as error:  # A damaged file may raise any; tokenizers raises Exception itself.
        if is_out_of_memory(error):
            raise
        raise ModelCorrupt(f"{what} cannot be loaded; {advice}") from error


@contextmanager
def explained(runtime: str) -> Iterator[None]:
    """Give errors of ``gemma_fast`` their kind here.

    Args:
        runtime: Name of the runtime that computes.

    Raises:
        ModelCorrupt: For damaged files.
        WrongModel: For a network that it does not compute.
    """
    try:
        yield
    except Damaged as error:
        raise ModelCorrupt(str(error)) from error
    except Unsupported as error:
        raise WrongModel(
            f"{error}, which runtime={runtime!r} does not compute; use runtime='transformers'"
        ) from error


def require(*packages: str, runtime: str) -> None:
    """Check that packages are installed; imports none.

    Args:
        packages: Their import names.
        runtime: Name of the runtime that needs them, and of the extra that installs them.

    Raises:
        MissingDependency: If one is not.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"runtime={runtime!r} needs {' and '.join(missing)}: "
            f'pip install "gemma-embed[{runtime}]"'
        )
