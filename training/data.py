"""Tokenised corpus and batches: prompts as in use, neighbours in meaning together."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from student import BOS, EOS, OTHER_PROMPTS, PROMPTS
from teacher import MAX_TOKENS as TEACHER_TOKENS
from tokenizers import Tokenizer
from torch import Tensor
from written import SOURCE as WRITTEN
from written import entries

BATCH = 256
POOL = 32 * BATCH
MAX_TOKENS = 160
RARE_PROMPTS = sorted({*PROMPTS.values(), *OTHER_PROMPTS} - {PROMPTS["query"], PROMPTS["document"]})
# Share of each prompt for a text without a title; the rest gets no prompt.
QUERY_SHARE, DOCUMENT_SHARE, RARE_SHARE = 0.44, 0.34, 0.15
TITLED_SHARE = 0.75
# Half the corpus is a few words long; a pass takes all longer texts and this share of the others.
LONG = 20
SHORT_SHARE = 0.5
# The written texts are few and nearest to what the model is for: a pass repeats each so often.
WRITTEN_COPIES = 3
# Consecutive pairs that are near in meaning; a batch has four such rows.
NEIGHBOURS = 32


class Prompted(NamedTuple):
    """A prompted text.

    Attributes:
        ids: Token ids.
        aligned: For each token the teacher's token that it represents, -1 without one.
    """

    ids: list[int]
    aligned: list[int]


class Answered(NamedTuple):
    """A written passage and the questions it answers, as indices of texts.

    Attributes:
        titled: Index of the passage with its title.
        untitled: Index of the passage alone.
        questions: Indices of the questions.
    """

    titled: int
    untitled: int
    questions: list[int]


class Corpus:
    """All texts as token ids, in flat arrays.

    Attributes:
        written: Whether a text is one of `written.py`'s.
        answered: The written passages and their questions.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        """Read and tokenise.

        Args:
            path: What `corpus.py` wrote.
            tokenizer: The student's.

        Raises:
            ValueError: If the corpus lacks texts of `written.py`.
        """
        with path.open() as file:
            rows = [json.loads(line) for line in file]
        self.written = np.array([row["source"] == WRITTEN for row in rows])
        numbers = {
            (rows[number]["text"], rows[number]["title"]): int(number)
            for number in self.written.nonzero()[0]
        }
        try:
            self.answered = [
                Answered(
                    numbers[entry["text"], entry["title"]],
                    numbers[entry["text"], ""],
                    [numbers[question, ""] for question in entry["questions"]],
                )
                for entry in entries()
            ]
        except KeyError as error:
            raise ValueError(f"{path} lacks written texts: recreate it with corpus.py") from error
        self._texts = self._encode(tokenizer, [row["text"] for row in rows])
        self._titles = self._encode(tokenizer, [row["title"] for row in rows])
        self._prompts = {
            prompt: tokenizer.encode(prompt, add_special_tokens=False).ids
            for prompt in (*PROMPTS.values(), *OTHER_PROMPTS, "title: ", " | text: ", ".")
        }

    def _encode(self, tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        flat: list[np.ndarray] = []
        ends = [0]
        for start in range(0, len(texts), 20_000):
            chunk = texts[start : start + 20_000]
            for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False):
                flat.append(np.array(encoding.ids, np.uint16))
                ends.append(ends[-1] + len(encoding.ids))
        return np.concatenate(flat), np.array(ends)

    @staticmethod
    def _row(arrays: tuple[np.ndarray, np.ndarray], index: int) -> list[int]:
        flat, ends = arrays
        return flat[ends[index] : ends[index + 1]].tolist()

    def lengths(self) -> np.ndarray:
        """Tokens of each text as the teacher read it, with [CLS] and [SEP]."""
        titles, texts = (np.diff(ends) for _, ends in (self._titles, self._texts))
        return np.minimum(titles + (titles > 0) + texts + 2, TEACHER_TOKENS)

    def bare(self, index: int) -> list[int]:
        """Token ids of a text as the teacher read it, without BOS and EOS."""
        title = self._row(self._titles, index)
        text = self._row(self._texts, index)
        return [*title, *self._prompts["."], *text] if title else text

    def prompted(self, index: int, prompt: str | None) -> Prompted:
        """Token ids of a text under a prompt, or under the titled document prompt if None."""
        bare = self.bare(index)
        if prompt is None:
            size = len(self._row(self._titles, index))
            start, middle = self._prompts["title: "], self._prompts[" | text: "]
            body = start + bare[:size] + middle + bare[size + 1 :]
            # The bar corresponds to the teacher's full stop.
            aligned = [-1] * len(start) + [*range(size + 1)] + [-1] * (len(middle) - 1)
            aligned += range(size + 1, len(bare))
        else:
            start = self._prompts[prompt] if prompt else []
            body = start + bare
            aligned = [-1] * len(start) + [*range(len(bare))]
        last = min(len(bare) + 2, TEACHER_TOKENS) - 1
        ids = [BOS, *body[: MAX_TOKENS - 2], EOS]
        # The teacher's first and last tokens are [CLS] and [SEP], the student's are BOS and EOS.
        inner = [number + 1 if 0 <= number < last - 1 else -1 for number in aligned]
        return Prompted(ids, [0, *inner[: MAX_TOKENS - 2], last])

    def sample(self, index: int, rng: np.random.Generator) -> Prompted:
        """Token ids of a text under a random prompt."""
        draw = rng.random()
        if self._row(self._titles, index):
            if draw < TITLED_SHARE:
                return self.prompted(index, None)
            draw = rng.random()
        if draw < QUERY_SHARE:
            return self.prompted(index, PROMPTS["query"])
        if draw < QUERY_SHARE + DOCUMENT_SHARE:
            return self.prompted(index, PROMPTS["document"])
        if draw < QUERY_SHARE + DOCUMENT_SHARE + RARE_SHARE:
            return self.prompted(index, RARE_PROMPTS[rng.integers(len(RARE_PROMPTS))])
        return self.prompted(index, "")


@dataclass(frozen=True)
class Batch:
    """Texts of similar length and the rows of their teacher vectors.

    Attributes:
        ids: Token ids, padded on the right.
        mask: 1 for a token, 0 for padding.
        aligned: The teacher's token for each, -1 without one.
        rows: Indices of the texts.
    """

    ids: Tensor
    mask: Tensor
    aligned: Tensor
    rows: np.ndarray

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids and mask of so many texts at a time, with the least padding."""
        for start in range(0, len(self.ids), size):
            mask = self.mask[start : start + size]
            length = _padded(int(mask.sum(1).max()))
            yield self.ids[start : start + size, :length], mask[:, :length]


def _padded(length: int) -> int:
    """Round up to a multiple of 8, so that few shapes occur."""
    return -(-length // 8) * 8


def pad(sequences: list[Prompted], rows: np.ndarray) -> Batch:
    """Pad to a common length."""
    length = _padded(max(len(sequence.ids) for sequence in sequences))
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    aligned = torch.full((len(sequences), length), -1)
    for number, sequence in enumerate(sequences):
        ids[number, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[number, : len(sequence.ids)] = 1
        aligned[number, : len(sequence.ids)] = torch.tensor(sequence.aligned)
    return Batch(ids, mask, aligned, rows)


@dataclass(frozen=True)
class Asked:
    """A batch of questions and the passages that answer them.

    Attributes:
        batch: Questions and passages.
        questions: Positions of the questions in the batch, int64, shape (pairs,).
        passages: Positions of their passages, in the same order and shape.
    """

    batch: Batch
    questions: Tensor
    passages: Tensor


def nearest_pivots(vectors: Tensor, pivots: Tensor) -> np.ndarray:
    """The nearest pivot of each vector: a cheap clustering."""
    parts = [(part @ pivots.T).argmax(-1) for part in vectors.split(20_000)]
    return torch.cat(parts).numpy()


def batches(
    corpus: Corpus, vectors: Tensor, first: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """One pass over the corpus in batches with several texts of each of a few topics.

    A random batch teaches little about telling neighbours apart. So texts are grouped by their
    nearest of many random texts, dozens of groups are pooled, and the pool is cut by length.

    Args:
        corpus: The texts.
        vectors: Teacher vectors (bfloat16) of the first texts; the rest is not used.
        first: Texts before this one are held out.
        rng: Source of the sampling.

    Yields:
        Batches of `BATCH` texts.
    """
    count = len(vectors)
    taken = (corpus.lengths()[:count] >= LONG) | (rng.random(count) < SHORT_SHARE)
    copies = np.where(corpus.written[:count], WRITTEN_COPIES, taken)
    copies[:first] = 0
    rows = np.repeat(np.arange(count), copies)
    pivots = rng.choice(rows, min(2000, len(rows) // 200), replace=False)
    groups = nearest_pivots(vectors[torch.from_numpy(rows)], vectors[torch.from_numpy(pivots)])
    order = rng.permutation(len(pivots))[groups]
    rows = rows[np.lexsort((rng.random(len(groups)), order))]
    starts = rng.permutation(np.arange(0, len(rows) - POOL + 1, POOL))
    for start in starts:
        pool = rows[start : start + POOL]
        sequences = [corpus.sample(int(row), rng) for row in pool]
        lengths = np.array([len(s.ids) for s in sequences])
        # With the noise, a batch has texts of slightly different lengths.
        by_length = np.argsort(lengths * rng.uniform(0.85, 1.15, len(lengths)))
        for part in rng.permutation(by_length.reshape(-1, BATCH)):
            ordered = part[np.argsort(lengths[part])]
            yield pad([sequences[i] for i in ordered], pool[ordered])


def asked(corpus: Corpus, vectors: Tensor, rng: np.random.Generator) -> Iterator[Asked]:
    """Written questions and their passages, endlessly, `NEIGHBOURS` similar ones together.

    Args:
        corpus: The texts.
        vectors: Teacher vectors (bfloat16).
        rng: Source of the sampling.

    Yields:
        Batches of `BATCH` texts.

    Raises:
        ValueError: If the teacher has not read the written texts, which are the last ones.
    """
    if len(vectors) < len(corpus.written):
        raise ValueError("questions need the teacher's complete corpus: let teacher.py finish")
    titled = torch.tensor([each.titled for each in corpus.answered])
    while True:
        pivots = rng.choice(len(titled), len(titled) // 50, replace=False)
        groups = nearest_pivots(vectors[titled], vectors[titled[torch.from_numpy(pivots)]])
        order = rng.permutation(len(pivots))[groups]
        grouped = np.lexsort((rng.random(len(groups)), order))
        complete = grouped[: len(grouped) // (BATCH // 2) * (BATCH // 2)]
        near = rng.permutation(complete.reshape(-1, NEIGHBOURS))
        for chosen in near.reshape(-1, BATCH // 2):
            rows: list[int] = []
            prompts: list[str | None] = []
            for number in chosen:
                each = corpus.answered[number]
                rows.append(each.questions[rng.integers(len(each.questions))])
                prompts.append(PROMPTS["query"])
                has_title = rng.random() < 0.5
                rows.append(each.titled if has_title else each.untitled)
                prompts.append(None if has_title else PROMPTS["document"])
            sequences = [corpus.prompted(*pair) for pair in zip(rows, prompts, strict=True)]
            by_length = np.argsort([len(sequence.ids) for sequence in sequences])
            batch = pad([sequences[i] for i in by_length], np.array(rows)[by_length])
            places = torch.from_numpy(np.argsort(by_length))
            yield Asked(batch, places[0::2], places[1::2])
