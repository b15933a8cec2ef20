"""Validate the retrieval and sentence-pair sets in this folder.

Run ``python3 check.py``. It exits with status 1 and lists every problem when a file breaks a rule,
and otherwise prints the sizes and how many words queries share with their relevant passages.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RETRIEVAL_FILES = ("everyday.json", "technical.json")
PAIRS_FILE = "pairs.json"

MIN_PASSAGES = 320
MIN_QUERIES = 170
MIN_PAIRS = 120
PASSAGE_WORDS = range(25, 61)
MAX_MEAN_OVERLAP = 0.10
MAX_QUERY_OVERLAP = 0.5
SCORES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MIN_SHARE_PER_SCORE = 0.10

STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "again",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "anyone",
        "anything",
        "are",
        "as",
        "at",
        "away",
        "back",
        "be",
        "because",
        "been",
        "before",
        "being",
        "both",
        "but",
        "by",
        "can",
        "cannot",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "done",
        "down",
        "each",
        "either",
        "else",
        "enough",
        "even",
        "ever",
        "every",
        "few",
        "for",
        "from",
        "get",
        "gets",
        "getting",
        "give",
        "go",
        "goes",
        "going",
        "got",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "instead",
        "into",
        "is",
        "it",
        "its",
        "just",
        "keep",
        "keeps",
        "let",
        "like",
        "made",
        "make",
        "makes",
        "making",
        "many",
        "may",
        "me",
        "might",
        "more",
        "most",
        "much",
        "must",
        "my",
        "need",
        "needs",
        "never",
        "no",
        "nor",
        "not",
        "now",
        "of",
        "off",
        "on",
        "once",
        "one",
        "ones",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "own",
        "per",
        "put",
        "same",
        "she",
        "should",
        "since",
        "so",
        "some",
        "someone",
        "something",
        "still",
        "such",
        "take",
        "takes",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "thing",
        "things",
        "this",
        "those",
        "though",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "us",
        "use",
        "used",
        "using",
        "very",
        "want",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "whether",
        "which",
        "while",
        "who",
        "whose",
        "why",
        "will",
        "with",
        "within",
        "without",
        "would",
        "yet",
        "you",
        "your",
    ]
)
SUFFIXES = (
    "ations", "ation", "ments", "ment", "nesses", "ness", "ings", "ing", "edly", "ied", "ies",
    "ers", "ely", "ed", "er", "es", "ly", "s", "e", "y",
)  # fmt: skip


def stem(word: str) -> str:
    """Reduce a lower-case word to a rough stem.

    Args:
        word: The word, without punctuation.

    Returns:
        The word with one common English suffix removed and a doubled last consonant made single.
    """
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] in "ey" else word


def content_stems(text: str) -> set[str]:
    """Collect the stems of a text's words that are not stop words.

    Args:
        text: Any English text.

    Returns:
        The distinct stems.
    """
    words = re.findall(r"[a-z0-9]+", re.sub(r"['\u2019](s|t|re|ve|ll|d|m)\b", "", text.lower()))
    return {stem(word) for word in words if word not in STOP_WORDS and len(word) > 1}


def overlap(query: str, passage: str) -> float:
    """Measure how much of a query's wording a passage repeats.

    Args:
        query: The query.
        passage: The passage, with its title.

    Returns:
        The fraction of the query's content stems which also occur in the passage.
    """
    stems = content_stems(query)
    return len(stems & content_stems(passage)) / len(stems) if stems else 0.0


def load(name: str) -> dict[str, list[dict[str, Any]]]:
    """Read one data file of this folder.

    Args:
        name: The file's name.

    Returns:
        The parsed JSON object.
    """
    data: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return data


def repeated(values: list[str]) -> list[str]:
    """Find values that occur more than once.

    Args:
        values: The values to count.

    Returns:
        Each repeated value, once.
    """
    return [value for value, count in Counter(values).items() if count > 1]


def check_retrieval(name: str, problems: list[str]) -> tuple[int, list[float]]:
    """Check one retrieval set.

    Args:
        name: The file's name.
        problems: Receives one line for each broken rule.

    Returns:
        The number of passages, and the overlap of each query with its relevant passages (the
        largest, where there are several).
    """
    data = load(name)
    passages = {item["id"]: f"{item['title']} {item['text']}" for item in data["passages"]}
    for field in ("id", "title", "text"):
        values = [item[field] for item in data["passages"]]
        problems += [f"{name}: passage {field} repeated: {value}" for value in repeated(values)]
    for field in ("id", "text"):
        values = [item[field] for item in data["queries"]]
        problems += [f"{name}: query {field} repeated: {value}" for value in repeated(values)]
    for item in data["passages"]:
        words = len(item["text"].split())
        if words not in PASSAGE_WORDS:
            problems.append(f"{name}: {item['id']} has {words} words")

    overlaps = []
    for query in data["queries"]:
        unknown = [key for key in query["relevant"] if key not in passages]
        if unknown or not query["relevant"]:
            problems.append(f"{name}: {query['id']} has no valid relevant passage: {unknown}")
            continue
        value = max(overlap(query["text"], passages[key]) for key in query["relevant"])
        if value > MAX_QUERY_OVERLAP:
            problems.append(f"{name}: {query['id']} overlaps {value:.2f}: {query['text']}")
        overlaps.append(value)
    return len(passages), overlaps


def check_pairs(problems: list[str]) -> Counter[float]:
    """Check the sentence pairs.

    Args:
        problems: Receives one line for each broken rule.

    Returns:
        How many pairs have each score.
    """
    pairs = load(PAIRS_FILE)["pairs"]
    counts = Counter(pair["score"] for pair in pairs)
    if len(pairs) < MIN_PAIRS:
        problems.append(f"{PAIRS_FILE}: {len(pairs)} pairs, expected at least {MIN_PAIRS}")
    problems += [f"{PAIRS_FILE}: unexpected score {score}" for score in counts.keys() - SCORES]
    for score in SCORES:
        if counts[score] < MIN_SHARE_PER_SCORE * len(pairs):
            problems.append(f"{PAIRS_FILE}: only {counts[score]} pairs have score {score}")
    sentences = [pair[side] for pair in pairs for side in ("a", "b")]
    problems += [f"{PAIRS_FILE}: sentence repeated: {text}" for text in repeated(sentences)]
    return counts


def main() -> int:
    """Check every file and print a summary.

    Returns:
        The exit status: 0 when all rules hold, 1 otherwise.
    """
    problems: list[str] = []
    passage_total = 0
    all_overlaps: list[float] = []
    for name in RETRIEVAL_FILES:
        passage_count, overlaps = check_retrieval(name, problems)
        passage_total += passage_count
        all_overlaps += overlaps
        print(
            f"{name}: {passage_count} passages, {len(overlaps)} queries, "
            f"mean overlap {sum(overlaps) / len(overlaps):.3f}, largest {max(overlaps):.2f}"
        )
    mean = sum(all_overlaps) / len(all_overlaps)
    print(
        f"together: {passage_total} passages, {len(all_overlaps)} queries, mean overlap {mean:.3f}"
    )
    if passage_total < MIN_PASSAGES:
        problems.append(f"{passage_total} passages, expected at least {MIN_PASSAGES}")
    if len(all_overlaps) < MIN_QUERIES:
        problems.append(f"{len(all_overlaps)} queries, expected at least {MIN_QUERIES}")
    if mean > MAX_MEAN_OVERLAP:
        problems.append(f"mean overlap {mean:.3f}, expected at most {MAX_MEAN_OVERLAP}")

    counts = check_pairs(problems)
    spread = ", ".join(f"{score}: {counts[score]}" for score in SCORES)
    print(f"{PAIRS_FILE}: {sum(counts.values())} pairs ({spread})")

    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
