"""The path of a text: checked, prompted, distinct, stored or computed, placed and cut.

Each step is a function; ``Embedder`` chooses the options. The only I/O is the runtime's and the
store's. An item carries the caller's index from the first step to the last, and a runtime's own
numbering is translated in one place (``_computed``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from gemma_embed.cancellation import check_not_cancelled
from gemma_embed.errors import BadResponse, EmbeddingError, ModelChanged
from gemma_embed.gate import checked_outcomes, checked_stored
from gemma_embed.identity import fingerprint
from gemma_embed.long_texts import (
    RULES,
    Overlength,
    Overlong,
    Prompted,
    Ready,
    resolved,
)
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Runtime, TooLong
from gemma_embed.store import EmbeddingStore
from gemma_embed.vectors import Vectors, cut

logger = logging.getLogger("gemma_embed")

_STORE_PAGE = 4096


@dataclass(frozen=True)
class Route:
    """What the steps need to know.

    Attributes:
        runtime: Computes vectors.
        overlong: The policy for texts of too many tokens.
        store: Where vectors are looked up and stored; or None.
        dimensions: Width of the vectors returned.
    """

    runtime: Runtime
    overlong: Overlong
    store: EmbeddingStore | None
    dimensions: int

    @property
    def rule(self) -> str:
        """The policy as it stands in a vector space's name."""
        return RULES[self.overlong]

    @property
    def space(self) -> str:
        """Name of the vector space in the store, at full width: a cut vector costs nothing."""
        return fingerprint(self.runtime.identity, {"overlong": self.rule})

    def rounded(self, vectors: Vectors) -> Vectors:
        """Return vectors as the store has them, so that it makes no difference who had them."""
        return vectors if self.store is None else self.store.rounded(vectors)


def embedded(items: Sequence[Prompted], route: Route, done: Callable[[int], object]) -> Vectors:
    """Return the vectors of prompted texts.

    Args:
        items: In the caller's order.
        route: Runtime, policy, store, width.
        done: Told how many more of the items are ready.

    Returns:
        float32, shape (len(items), dimensions), rows of norm 1, in the order of ``items``.

    Raises:
        EmbeddingError: ``index`` is that of the item at fault.
    """
    result = np.empty((len(items), route.dimensions), dtype=np.float32)
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.prompted, []).append(place)
    firsts = [items[where[0]] for where in places.values()]
    for ready, vectors in _resolved(firsts, route):
        try:
            narrow = cut(route.rounded(vectors), route.dimensions)
        except BadResponse as error:
            error.index = ready[error.index or 0].index
            raise
        for item, vector in zip(ready, narrow, strict=True):
            result[places[item.prompted]] = vector
        done(sum(len(places[item.prompted]) for item in ready))
    return result


def prompted(
    texts: Sequence[str],
    titles: Sequence[str | None],
    task: str,
    prompts: Prompts,
    start: int = 0,
) -> list[Prompted]:
    """Put the task's prompt before each text, with a warning where there is one already.

    Args:
        texts: Checked texts.
        titles: A title or None for each.
        task: A checked task.
        prompts: Of the runtime.
        start: The caller's index of the first text.

    Raises:
        InvalidInput: If a title cannot be part of a prompt.
    """
    if any(map(prompts.begins, texts)):
        _warn_of_doubled(task)
    return [
        Prompted(index, prompts.prefix(task, title, index), text, title)
        for index, (text, title) in enumerate(zip(texts, titles, strict=True), start)
    ]


# Once a process: a corpus with prompts has them in every text.
@cache
def _warn_of_doubled(task: str) -> None:
    logger.warning(
        "a text begins with a prompt of the model, and gets that of the task %r before it: pass "
        "texts without prompts",
        task,
    )


def _resolved(items: Sequence[Prompted], route: Route) -> Iterator[Ready]:
    runtime, store = route.runtime, route.store
    space = "" if store is None else route.space

    def compute(
        items: Sequence[Prompted], *, truncate: bool = False
    ) -> Iterator[Ready | Overlength]:
        missing = list(items)
        # A text that is to be truncated was looked up before.
        if store is not None and not truncate:
            missing = yield from _looked_up(items, store, space, runtime.model.width)
            if missing:
                store.check_writable()
        if missing:
            for outcome in _computed(missing, runtime, truncate):
                if isinstance(outcome, Overlength):
                    yield outcome
                else:
                    keep(outcome)
                    yield outcome[0], route.rounded(outcome[1])

    def keep(ready: Ready) -> None:
        if store is None:
            return
        # Closed, or given other weights, between its name and its vectors.
        if route.space != space:
            raise ModelChanged(
                f"the weights of {runtime.description} changed during the call, and nothing of "
                "them is stored; repeat the call"
            )
        store.put(space, [item.prompted for item in ready[0]], ready[1])

    def limit() -> int:
        return runtime.identity.max_tokens

    if items:
        yield from resolved(items, compute, keep, route.overlong, runtime.prompts, limit)


def _looked_up(
    items: Sequence[Prompted], store: EmbeddingStore, space: str, width: int
) -> Generator[Ready, None, list[Prompted]]:
    """Yield the items that the store has, and return the others."""
    missing: list[Prompted] = []
    for start in range(0, len(items), _STORE_PAGE):
        page = items[start : start + _STORE_PAGE]
        found = store.get(space, [item.prompted for item in page], width)
        rows, vectors = checked_stored(*found)
        if rows:
            yield [page[row] for row in rows], vectors
        present = set(rows)
        missing += [item for row, item in enumerate(page) if row not in present]
    return missing


def _computed(
    items: Sequence[Prompted], runtime: Runtime, truncate: bool
) -> Iterator[Ready | Overlength]:
    """Have the runtime compute, until the call is cancelled."""
    texts = [item.prompted for item in items]
    check_not_cancelled()
    try:
        outcomes = runtime.embed(texts, truncate=truncate)
        width, source = runtime.model.width, runtime.description
        for outcome in checked_outcomes(outcomes, len(texts), width, source):
            if isinstance(outcome, TooLong):
                yield Overlength(items[outcome.row], outcome.tokens)
            else:
                rows, vectors = outcome
                yield [items[row] for row in rows], vectors
            check_not_cancelled()
    except EmbeddingError as error:
        if error.index is not None and 0 <= error.index < len(items):
            error.index = items[error.index].index
        raise
