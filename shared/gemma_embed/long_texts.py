"""What happens to texts of more tokens than the model reads, for all of a call together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import BadResponse, InputTooLong
from gemma_embed.prompts import Prompts
from gemma_embed.vectors import SMALLEST_NORM, Vectors

logger = logging.getLogger("gemma_embed")

Overlong = Literal["error", "truncate", "split"]

# How long texts are cut and weighed decides vectors, so it is part of a vector space's name.
RULES: dict[Overlong, str] = {"error": "error", "truncate": "truncate/2", "split": "split/2"}

# A part of more characters for each token that the model reads is halved without asking the
# runtime: texts of any script have fewer, so it would be refused.
_CHARACTERS_A_TOKEN = 8
# A title may take about an eighth of what is read of a long text (four characters a token).
_TITLE_SHARE = 2


@dataclass(frozen=True)
class Prompted:
    """A text with its prompt, on its way to the runtime.

    Attributes:
        index: Position in the caller's list; errors take theirs from here.
        prefix: The prompt before the text.
        text: The caller's text, or a part of it.
        title: Its title, for documents that have one.
    """

    index: int
    prefix: str
    text: str
    title: str | None = None

    @property
    def prompted(self) -> str:
        """What the model reads."""
        return self.prefix + self.text


@dataclass(frozen=True)
class Overlength:
    """A prompted text that the runtime found too long, with its tokens where they are known."""

    item: Prompted
    tokens: int | None


Ready: TypeAlias = tuple[list[Prompted], Vectors]


class Compute(Protocol):
    """Computes vectors of prompted texts, or looks them up."""

    def __call__(
        self, items: Sequence[Prompted], *, truncate: bool = False
    ) -> Iterator[Ready | Overlength]:
        """Yield every item exactly once."""


def resolved(
    items: Sequence[Prompted],
    compute: Compute,
    keep: Callable[[Ready], None],
    overlong: Overlong,
    prompts: Prompts,
    limit: Callable[[], int],
) -> Iterator[Ready]:
    """Compute vectors, and apply a policy to the texts that turn out too long.

    ``split`` halves a text between words until every part fits, and averages the parts' vectors,
    weighted by their UTF-8 bytes; the mean has norm 1. The parts of all texts are computed
    together, and every runtime cuts and weighs alike. Both policies shorten a title that would
    leave too little room for the text.

    Args:
        items: Distinct prompted texts.
        compute: Gives their vectors.
        keep: Told the vectors of split texts, which ``compute`` never sees.
        overlong: The policy.
        prompts: Give the parts their prompt.
        limit: Gives the tokens that the model reads; called only if a text is too long.

    Yields:
        Items and their vectors, float32, of norm 1, as soon as they are ready; each item once.

    Raises:
        InputTooLong: Under ``error``; otherwise if a text's title or task alone is too long.
    """
    found: list[Overlength] = []
    for outcome in compute(items):
        if not isinstance(outcome, Overlength):
            yield outcome
        elif overlong == "error":
            raise _too_long(outcome, limit())
        else:
            found.append(outcome)
    if not found:
        return
    logger.warning(
        "%d of %d texts were too long and were %s %d tokens, the prompt counted",
        len(found),
        len(items),
        "cut to" if overlong == "truncate" else "split into parts of at most",
        limit(),
    )
    long_items = [each.item for each in found]
    if overlong == "split":
        for ready in _split(long_items, compute, prompts, limit()):
            keep(ready)
            yield ready
        return
    yield from _truncated(long_items, compute, keep, prompts, limit())


def _truncated(
    items: Sequence[Prompted],
    compute: Compute,
    keep: Callable[[Ready], None],
    prompts: Prompts,
    limit: int,
) -> Iterator[Ready]:
    sharing: dict[str, tuple[Prompted, list[Prompted]]] = {}
    for item in items:
        read = _with_short_title(item, prompts, limit)
        sharing.setdefault(read.prompted, (read, []))[1].append(item)
    for outcome in compute([read for read, _ in sharing.values()], truncate=True):
        if isinstance(outcome, Overlength):
            raise _no_room(outcome, limit)
        for read, vector in zip(*outcome, strict=True):
            owners = sharing[read.prompted][1]
            ready = owners, np.tile(vector, (len(owners), 1))
            if owners != [read]:
                # Stored under the shorter title only.
                keep(ready)
            yield ready


def _split(
    items: Sequence[Prompted], compute: Compute, prompts: Prompts, limit: int
) -> Iterator[Ready]:
    sums: dict[int, npt.NDArray[np.float64]] = {}
    owners = {item.index: item for item in items}
    waiting = [part for item in items for part in _first_parts(item, prompts, limit)]
    # Halving a text cannot help where its prompt alone is too long.
    prefixes = {part.prefix: part for part in waiting if len(part.prefix) > limit // _TITLE_SHARE}
    for outcome in compute([replace(part, text="") for part in prefixes.values()]):
        if isinstance(outcome, Overlength):
            raise _no_room(outcome, limit)
    while waiting:
        # Equal parts are computed once; each text that has one takes it.
        sharing: dict[str, list[Prompted]] = {}
        for part in waiting:
            sharing.setdefault(part.prompted, []).append(part)
        waiting = []
        for outcome in compute([parts[0] for parts in sharing.values()]):
            if isinstance(outcome, Overlength):
                if len(outcome.item.text) < 2:
                    raise _no_room(outcome, limit)
                for part in sharing[outcome.item.prompted]:
                    waiting += _halved(part)
                continue
            for first, vector in zip(*outcome, strict=True):
                for part in sharing[first.prompted]:
                    weight = max(1, len(part.text.encode()))
                    sums[part.index] = sums.get(part.index, 0) + weight * vector.astype(np.float64)
        unfinished = {part.index for part in waiting}
        for index in sums.keys() - unfinished:
            mean = sums.pop(index)
            norm = np.linalg.norm(mean)
            if norm < SMALLEST_NORM * len(owners[index].text.encode()):
                raise BadResponse("the vectors of its parts cancel each other out", index=index)
            yield [owners[index]], (mean / norm).astype(np.float32)[None, :]


def _first_parts(item: Prompted, prompts: Prompts, limit: int) -> list[Prompted]:
    most = limit * _CHARACTERS_A_TOKEN
    parts: list[Prompted] = []
    start = _with_short_title(item, prompts, limit)
    waiting = _halved(start) if start == item and len(item.text) > 1 else [start]
    while waiting:
        part = waiting.pop()
        if len(part.text) > most:
            waiting += _halved(part)
        else:
            parts.append(part)
    return parts


def _with_short_title(item: Prompted, prompts: Prompts, limit: int) -> Prompted:
    """Shorten a title that would leave too little room for the text."""
    longest = max(1, limit // _TITLE_SHARE)
    if item.title is None or len(item.title) <= longest:
        return item
    title = item.title[:longest]
    return replace(item, prefix=prompts.prefix("document", title), title=title)


def _halved(part: Prompted) -> list[Prompted]:
    return [replace(part, text=half) for half in halves(part.text)]


def halves(text: str) -> tuple[str, str]:
    """Split a text in two near its middle, between words where there are words.

    Halving needs no tokenizer, only an answer to "does it fit", so parts are the same on every
    runtime, and of similar length.

    Args:
        text: At least two characters.

    Returns:
        Two non-empty parts that joined are the text.
    """
    middle = len(text) // 2
    reach = len(text) // 4
    for distance in range(reach):
        for position in (middle - distance, middle + distance):
            if 0 < position < len(text) and text[position].isspace():
                return text[:position], text[position:]
    return text[:middle], text[middle:]


def _no_room(outcome: Overlength, limit: int) -> InputTooLong:
    return InputTooLong(
        f"its title or task leaves no room for text in the {limit} tokens that the model reads; "
        "shorten the title or the task's description",
        index=outcome.item.index,
        tokens=outcome.tokens,
        limit=limit,
    )


def _too_long(outcome: Overlength, limit: int) -> InputTooLong:
    item = outcome.item
    count = f"more than {limit}" if outcome.tokens is None else str(outcome.tokens)
    if item.title is not None and len(item.title) > len(item.text):
        advice = f"most of it is the title, of {len(item.title)} characters: shorten the title"
    else:
        advice = (
            "split texts into smaller chunks, or choose overlong='truncate' or overlong='split'"
        )
    return InputTooLong(
        f"the text with its prompt has {count} tokens, the model reads {limit}; {advice}",
        index=item.index,
        tokens=outcome.tokens,
        limit=limit,
    )
