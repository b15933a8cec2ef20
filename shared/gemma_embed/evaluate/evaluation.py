"""Evaluate settings on passages and questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gemma_embed.embedder import Embedder
from gemma_embed.errors import ConfigurationError, EmbeddingError, InvalidInput
from gemma_embed.evaluate.questions import Question
from gemma_embed.evaluate.report import Report, Row
from gemma_embed.evaluate.scores import DEPTH, required, scored
from gemma_embed.evaluate.settings import (
    WORDS,
    Order,
    Search,
    Setting,
    WithoutPrompts,
    milliseconds,
    titled,
    vector_search,
    word_search,
)
from gemma_embed.long_texts import Overlong
from gemma_embed.passages import Passage, checked_passage, title_of
from gemma_embed.progress import ProgressCallback
from gemma_embed.prompts import Task
from gemma_embed.runtimes import Runtime, RuntimeName, open_runtime
from gemma_embed.store import EmbeddingStore


@dataclass(frozen=True)
class _Corpus:
    """Passages and questions, checked.

    Attributes:
        texts: Of the passages.
        titles: A title or None for each.
        questions: The texts of the questions.
        labels: What errors call the passages.
        asked: What errors call the questions.
        names: For each question the name that each passage counts under.
        right: For each question the right ones of these names.
    """

    texts: list[str]
    titles: list[str | None]
    questions: list[str]
    labels: list[str]
    asked: list[str]
    names: list[list[str]]
    right: list[set[str]]

    def scores(self, orders: Iterable[Order]) -> dict[str, Any]:
        """Score the order that each question puts the passages in."""
        return scored(self.right, [_first(*pair) for pair in zip(orders, self.names, strict=True)])


def evaluate(
    passages: Iterable[Passage | Mapping[str, Any]],
    questions: Iterable[Question],
    runtimes: RuntimeName | Runtime | Mapping[str, RuntimeName | Runtime],
    *,
    widths: Sequence[int] | None = None,
    prompts: Sequence[bool] = (True,),
    titles: Sequence[bool] = (True,),
    overlong: Sequence[Overlong] = ("error",),
    two_step: Sequence[int] = (),
    candidates: int = 100,
    words: bool = True,
    task: Task | str = "query",
    title_key: str = "title",
    store: EmbeddingStore | str | Path | None = None,
    timed: int = 16,
    progress: bool | ProgressCallback = False,
) -> Report:
    """Score every combination of settings: exact search by cosine, and BM25.

    Args:
        passages: What is searched: ``read_passages``, or a framework's documents through
            ``langchain_gemma_embed.passages`` or ``llamaindex_gemma_embed.passages``.
        questions: ``read_questions``, or the second result of ``draw_questions``.
        runtimes: A runtime, or several by the names that the report gives them; objects, or names
            as ``Embedder`` takes them. All rows are compared with the first runtime at its first
            settings.
        widths: Widths of the index; None for all that the model was trained for.
        prompts: Whether texts get the model's prompts; ``(True, False)`` compares.
        titles: Whether passages get their titles; without prompts as the first line of the text.
        overlong: Policies for texts of too many tokens.
        two_step: Widths of an index whose candidates are put in order at full width.
        candidates: How many.
        words: Whether BM25 is a row, as a yardstick.
        task: Of the questions; of the passages too, where the model embeds both sides alike.
        title_key: The metadata key of titles.
        store: Where vectors, those of questions too, are looked up and stored; each is computed
            once at full width.
        timed: Questions whose time is measured, one at a time, past the store; 0 for none, so that
            nothing is computed if all vectors are stored.
        progress: As for ``Embedder``.

    Returns:
        A row for each combination, the first runtime's first, BM25 last.

    Raises:
        InvalidInput: If a passage or question cannot be used, an answer is unknown, or two
            passages have the same id.
        ConfigurationError: If a setting cannot work.
        MissingDependency: If the extra ``evaluate`` is not installed.
        EmbeddingError: As ``Embedder.embed``.
    """
    # Before any model work.
    for package in ("ir_measures", *(["bm25s"] if words else [])):
        required(package)
    corpus, drawn = _corpus(passages, list(questions), title_key)
    given = runtimes if isinstance(runtimes, Mapping) else {"": runtimes}
    named = {name: open_runtime(each) for name, each in given.items()}
    jobs = []
    for name, runtime in named.items():
        model = runtime.model
        chosen = model.dimensions if widths is None else widths
        steps = [(model.checked_dimensions(width), 0) for width in dict.fromkeys(chosen)]
        narrow = dict.fromkeys(two_step)
        steps += [(model.checked_dimensions(width), candidates) for width in narrow]
        for prompted, policy in product(dict.fromkeys(prompts), dict.fromkeys(overlong)):
            asked = runtime if prompted else WithoutPrompts(runtime)
            embedder = Embedder(asked, overlong=policy, store=store, progress=progress)
            jobs.append((name, prompted, steps, embedder.for_task(task)))
    if not (jobs and titles and jobs[0][2]) or timed < 0:
        raise ConfigurationError(
            "name at least one runtime, width and value of each setting; timed is 0 or more"
        )
    full = any(runtime.model.width in two_step for runtime in named.values())
    if full or (two_step and not DEPTH <= candidates < len(corpus.texts)):
        raise ConfigurationError(
            f"two steps with {candidates} candidates of {len(corpus.texts)} passages: they need a "
            f"width below the full one, and from {DEPTH} candidates to fewer than all passages"
        )
    has_titles = any(corpus.titles)
    rows = []
    for name, prompted, steps, embedder in jobs:
        with named_texts(corpus.asked):
            vectors = embedder.embed(corpus.questions, embedder.query_task)
        query = milliseconds(embedder.embed_query, corpus.questions[:timed]) if timed else None
        takes = has_titles and embedder.takes_titles
        for with_titles in dict.fromkeys(each and takes for each in titles):
            heads = corpus.titles if with_titles else None
            with named_texts(corpus.labels):
                searched = embedder.embed_documents(corpus.texts, heads)
            for width, second in steps:
                setting = Setting(name, width, second, prompted, with_titles, embedder.overlong)
                search = vector_search(searched, width, second)
                rows.append(_row(setting, search, vectors, corpus, query, timed))
    if words:
        with_titles = has_titles and titles[0]
        texts = titled(corpus.texts, corpus.titles) if with_titles else corpus.texts
        setting = Setting(WORDS, titles=with_titles)
        query = 0.0 if timed else None
        rows.append(_row(setting, word_search(texts), corpus.questions, corpus, query, timed))
    return Report(tuple(rows), len(corpus.texts), len(corpus.questions), drawn, has_titles)


def checked_items(
    passages: Iterable[Passage | Mapping[str, Any]], title_key: str
) -> tuple[list[Passage], list[str | None]]:
    """Return checked passages, and a title or None for each.

    Raises:
        InvalidInput: If one cannot be used; ``index`` says which.
    """
    items = []
    for index, item in enumerate(passages):
        try:
            items.append(checked_passage(item))
        except InvalidInput as error:
            error.index = index
            raise
    return items, [title_of(item.metadata, title_key) for item in items]


def labels_of(items: Sequence[Passage]) -> list[str]:
    """Return what messages call passages: their ids, or their positions."""
    return [f"passage {item.id or row}" for row, item in enumerate(items)]


@contextmanager
def named_texts(labels: Sequence[str]) -> Iterator[None]:
    """Name the text at fault in an error: an index alone fits a question and a passage."""
    try:
        yield
    except EmbeddingError as error:
        if error.index is not None and error.index < len(labels):
            error.args = (f"{error.args[0]} ({labels[error.index]})",)
        raise


def _corpus(
    passages: Iterable[Passage | Mapping[str, Any]], questions: Sequence[Question], title_key: str
) -> tuple[_Corpus, bool]:
    items, titles = checked_items(passages, title_key)
    if not items or not questions:
        raise InvalidInput(f"{len(items)} passages and {len(questions)} questions: both are needed")
    own = [f"passage {row}" for row in range(len(items))]
    documents = [item.source or name for item, name in zip(items, own, strict=True)]
    known: dict[str, dict[str | None, set[str]]] = {"passage": {}, "document": {}}
    for index, (item, name, document) in enumerate(zip(items, own, documents, strict=True)):
        if item.id is not None and item.id in known["passage"]:
            raise InvalidInput(
                f"the id {item.id!r} is that of an earlier passage, too: give each passage its own "
                "id, and name what they are parts of as their document",
                index=index,
            )
        known["passage"].setdefault(item.id, set()).add(name)
        known["document"].setdefault(item.source, set()).add(document)
    for index, each in enumerate(questions):
        if not isinstance(each, Question):
            raise InvalidInput(f"question {index} is {type(each).__name__}, not a Question")
    asked = [each.where or f"question {index}" for index, each in enumerate(questions)]
    names, right = [], []
    for where, each in zip(asked, questions, strict=True):
        kind = "document" if each.documents else "passage"
        wanted = each.documents or each.passages
        missing = [name for name in wanted if name not in known[kind]]
        if missing or not wanted:
            said = f"there is no {kind} {missing[0]!r}" if missing else "no answer is named"
            raise InvalidInput(f"{where}: {said} among the {len(items)} passages")
        names.append(documents if each.documents else own)
        right.append(set().union(*(known[kind][name] for name in wanted)))
    texts = [item.text for item in items]
    wording = [each.text for each in questions]
    corpus = _Corpus(texts, titles, wording, labels_of(items), asked, names, right)
    return corpus, any(each.drawn for each in questions)


def _row(
    setting: Setting,
    search: Search,
    questions: Any,
    corpus: _Corpus,
    query: float | None,
    timed: int,
) -> Row:
    scores = corpus.scores(map(search, questions))
    took = None if query is None else query + milliseconds(search, questions[:timed])
    return Row(setting, scores, took)


def _first(order: Order, names: Sequence[str]) -> list[str]:
    """Return the first names in an order of passages, each once."""
    found: dict[str, None] = {}
    for row in order:
        found[names[row]] = None
        if len(found) == DEPTH:
            break
    return list(found)
