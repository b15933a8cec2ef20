"""Verify a Chroma collection that exists: whose vectors does it hold, and made from which input?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_embed.errors import CollectionError
from gemma_embed.gate import checked_outcomes
from gemma_embed.passages import embedded_parts, split_title, title_of
from gemma_embed.prompts import TASKS, Prompts
from gemma_embed.runtimes.base import Runtime, TooLong
from gemma_embed.vectors import Vectors, cut
from gemma_embed.verify.causes import Found

if TYPE_CHECKING:
    from chromadb import Collection

# Cosines of two vectors of one input: above the first nothing else is asked; 8 bits stay above the
# second, 4 bits above the third.
_EQUAL, _SAME, _RELATED = 0.99999, 0.99, 0.88
# Another form than the right one has to be nearer by so much.
_CLEARER = 0.5
_WITNESSES = 8
_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class CollectionVerdict(Found):
    """What ``verify_collection`` found.

    Attributes:
        collection: Its name.
        rows: Rows that were embedded again.
        inputs: For each form of the input how many rows it explains: ``document`` is as it should
            be; ``no_prompt``; ``title_dropped``; a task, whose prompt it is; ``unknown``.
        causes: Names in ``CAUSES``; empty if every row is as it should be.
        likeness: The lowest cosine of a row to what its form gives.
    """

    collection: str
    rows: int
    inputs: Mapping[str, int]
    causes: tuple[str, ...]
    likeness: float

    def __str__(self) -> str:
        agree = self.inputs.get("document", 0)
        lines = [f"{self.collection}: {agree} of {self.rows} rows agree"]
        lines += [f"{count} rows: {form}" for form, count in self.inputs.items()]
        return "\n".join([*lines, *self.lines()])


@dataclass(frozen=True)
class _Row:
    """A stored row: its text, its title if it has one, its vector."""

    text: str
    title: str | None
    vector: Vectors


def verify_collection(
    collection: Collection, runtime: Runtime, *, rows: int = 24
) -> CollectionVerdict:
    """Embed some stored rows again, and say how the collection's vectors were made.

    Args:
        collection: Of any origin: this package's, LangChain's, LlamaIndex's, Chroma's own classes.
        runtime: One that ``verify`` calls ok, of the model that should have filled it.
        rows: How many, evenly over the collection.

    Raises:
        CollectionError: If it has no row with a text and a vector.
        EmbeddingError: If the runtime fails.
    """
    sample = _sample(collection, rows)
    if not sample:
        raise CollectionError(
            f"the collection {collection.name!r} has no row with a text and a vector, so there is "
            "nothing to compare"
        )
    stored = [row.vector for row in sample]
    widths = {len(vector) for vector in stored}
    if len(widths) > 1 or not widths <= set(runtime.model.dimensions):
        return CollectionVerdict(collection.name, len(sample), {}, ("width",), 0.0)
    norms = np.array([np.linalg.norm(vector) for vector in stored])
    if not np.isfinite(norms).all() or not norms.all():
        return CollectionVerdict(collection.name, len(sample), {}, ("not_finite",), 0.0)
    causes = []
    if (np.abs(norms - 1) > _NORM_TOLERANCE).any():
        full = widths == {runtime.model.width}
        causes.append("not_normalised" if full else "cut_not_normalised")
    unit = np.array(stored) / norms[:, None]
    forms, likeness = _forms_of(sample, unit, runtime)
    inputs = Counter(forms)
    lowest = float(likeness.min())
    for form, _ in inputs.most_common():
        if form == "unknown":
            causes.append("another_model")
            continue
        prompt = form.removesuffix(_FLAT)
        if prompt != "document":
            causes.append(_CAUSES.get(prompt, "other_task"))
        if prompt != form:
            causes.append("newlines_to_spaces")
    if not causes and lowest < _SAME:
        causes.append("other_numbers")
    return CollectionVerdict(
        collection.name,
        len(sample),
        dict(inputs.most_common()),
        tuple(dict.fromkeys(causes)),
        lowest,
    )


def _sample(collection: Collection, rows: int) -> list[_Row]:
    count = collection.count()
    found = []
    for place in sorted({count * number // rows for number in range(rows)}) if count else ():
        got: Any = collection.get(
            limit=1, offset=place, include=["documents", "metadatas", "embeddings"]
        )
        text, metadata, vector = (
            None if got[key] is None else got[key][0]
            for key in ("documents", "metadatas", "embeddings")
        )
        if text and vector is not None:
            found.append(_row(got["ids"][0], text, metadata or {}, vector))
    return found


def _row(row: str, text: str, metadata: Mapping[str, Any], vector: Any) -> _Row:
    # The package of Chroma needs more than NumPy.
    from gemma_embed.chroma.nodes import embedded_content

    own = embedded_parts(metadata, text)
    if own is None:
        own = split_title(embedded_content(row, metadata, text))
    title = own[1] or title_of(metadata, "title")
    return _Row(own[0], title, np.asarray(vector, dtype=np.float32))


# How a row may have been put before the model, by the prompt that it got: the right one, none, the
# right one without the title, another task's; each with newlines as they are or, as LangChain's
# HuggingFaceEmbeddings does, as spaces.
_PROMPTS = ("document", "no_prompt", "title_dropped", *(t for t in TASKS if t != "document"))
_FLAT = ", newlines_to_spaces"
_FORMS = (*_PROMPTS, *(prompt + _FLAT for prompt in ("document", "no_prompt")))
_CAUSES = {
    "no_prompt": "no_prompt_on_documents",
    "title_dropped": "title_dropped",
    "query": "query_prompt_on_documents",
}


def _input(row: _Row, form: str, prompts: Prompts) -> str:
    prompt = form.removesuffix(_FLAT)
    text = row.text if prompt == form else row.text.replace("\n", " ")
    if prompt == "no_prompt":
        return text
    if prompt == "document":
        return prompts.prompted(text, prompt, row.title)
    return prompts.prompted(text, "document" if prompt == "title_dropped" else prompt)


def _forms_of(sample: Sequence[_Row], unit: Vectors, runtime: Runtime) -> tuple[list[str], Vectors]:
    """Return for each row the form of its input, and its cosine to that."""
    found: list[dict[str, float]] = [{} for _ in sample]

    def try_form(form: str, rows: Sequence[int]) -> None:
        texts = [_input(sample[row], form, runtime.prompts) for row in rows]
        vectors = _embedded(runtime, texts, unit.shape[1])
        for row, vector in zip(rows, vectors, strict=True):
            found[row][form] = float(vector @ unit[row])

    try_form("document", range(len(sample)))
    open_rows = [row for row, own in enumerate(found) if own["document"] < _EQUAL]
    if open_rows:
        # With titles first: without one, some forms are one and the same.
        witnesses = sorted(open_rows, key=lambda row: sample[row].title is None)[:_WITNESSES]
        for form in [form for form in _FORMS if form != "document"]:
            try_form(form, witnesses)
        seen = {_form(found[row])[0] for row in witnesses} - {"document", "unknown"}
        for form in seen:
            try_form(form, [row for row in open_rows if form not in found[row]])
    chosen = [_form(own) for own in found]
    return [form for form, _ in chosen], np.array([likeness for _, likeness in chosen], np.float32)


def _form(found: Mapping[str, float]) -> tuple[str, float]:
    best = max(found, key=found.__getitem__)
    # Rounding makes any of two forms a little nearer that a row hardly tells apart.
    if 1 - found[best] > _CLEARER * (1 - found["document"]):
        best = "document"
    return (best if found[best] >= _RELATED else "unknown"), found[best]


def _embedded(runtime: Runtime, texts: Sequence[str], dimensions: int) -> Vectors:
    distinct = list(dict.fromkeys(texts))
    vectors = np.zeros((len(distinct), dimensions), np.float32)
    outcomes = checked_outcomes(
        runtime.embed(distinct, truncate=True),
        len(distinct),
        runtime.model.width,
        runtime.description,
    )
    for outcome in outcomes:
        if not isinstance(outcome, TooLong):
            vectors[outcome[0]] = cut(outcome[1], dimensions)
    return vectors[[distinct.index(text) for text in texts]]
