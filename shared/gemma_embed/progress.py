"""Progress of a long call: a callback, or a bar drawn by tqdm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gemma_embed.errors import ConfigurationError, MissingDependency

ProgressCallback = Callable[[int, int], None]


def checked_progress(progress: bool | ProgressCallback) -> bool | ProgressCallback:
    """Return the option if it is one.

    Raises:
        ConfigurationError: If it is neither a bool nor a function.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise ConfigurationError(f"progress={progress!r} is neither a bool nor a function")
    return progress


@contextmanager
def reporting(progress: bool | ProgressCallback, total: int) -> Iterator[Callable[[int], object]]:
    """Give a function that is told how many more texts are done.

    Args:
        progress: True for a bar on standard error; a function that is called with (texts done,
            texts in total) after each batch; or False.
        total: Number of texts.

    Raises:
        MissingDependency: If a bar is asked for and tqdm is not installed.
    """
    if progress is True:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise MissingDependency(
                "a progress bar needs tqdm: pip install tqdm, or pass a function"
            ) from error
        with tqdm(total=total, unit="text", desc="embedding") as bar:
            yield bar.update
    elif callable(progress):
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        yield add
    else:
        yield lambda _: None
