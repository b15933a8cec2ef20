"""Sort mails and posts by topic and by mood: from label descriptions, and from a few examples.

Run: python examples/classify.py

The 312 messages are English, German, French, Spanish and Italian. A third of them, 104, are the
examples; the rest is scored. Words (TF-IDF) and vectors get the same head and the same examples.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import choose_runtime, run
from learning import DATA, Score, new_figure, parser, read_lines, resampled, save
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline

from gemma_embed.sklearn import GemmaEmbedTransformer

LANGUAGES = ("en", "de", "fr", "es", "it")
# For the zero-shot classifier: what a message of this label is.
DESCRIPTIONS = {
    "sentiment": {
        "negative": "an angry or disappointed complaint about something bad",
        "neutral": "a question, a request or a piece of information",
        "positive": "a happy, grateful or enthusiastic message about something good",
    },
    "topic": {
        "billing": "invoices, payments, fees and refunds",
        "delivery": "parcels, couriers and deliveries",
        "food": "restaurants, cooking, bread and groceries",
        "health": "doctors, medicine, sport and fitness",
        "software": "computer programs, apps and updates",
        "travel": "trains, hotels, hiking and holidays",
    },
}


def macro_f1(true: NDArray[np.intp], found: NDArray[np.intp], labels: int) -> float:
    """Mean over the labels of F1, 0 for a label that neither has."""
    counts = np.bincount(true * labels + found, minlength=labels**2).reshape(labels, labels)
    sums = counts.sum(axis=0) + counts.sum(axis=1)
    return float(np.mean(2 * np.diag(counts) / np.maximum(sums, 1)))


def zero_shot(vectors: GemmaEmbedTransformer, texts: list[str], field: str) -> list[str]:
    """Label each text with the nearest description."""
    labels = list(DESCRIPTIONS[field])
    likeness = vectors.transform(texts) @ vectors.transform(DESCRIPTIONS[field].values()).T
    return [labels[column] for column in likeness.argmax(axis=1)]


def head(features: Any, grid: dict[str, list[Any]]) -> GridSearchCV:
    """Return a logistic regression whose settings are chosen on the examples alone."""
    steps = [("features", features), ("head", LogisticRegression(max_iter=1000))]
    return GridSearchCV(Pipeline(steps), {"head__C": [1, 10, 100], **grid}, cv=3)


def scores(true: list[str], found: list[str]) -> tuple[Score, Score]:
    """Return accuracy and macro F1, with intervals."""
    labels = sorted(set(true))
    left, right = (np.array([labels.index(each) for each in names]) for names in (true, found))
    return (
        resampled(lambda rows: float(np.mean(left[rows] == right[rows])), len(true)),
        resampled(lambda rows: macro_f1(left[rows], right[rows], len(labels)), len(true)),
    )


def difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Score:
    """Return by how much we are right more often, on the same texts."""
    gain = ours.astype(float) - theirs
    return resampled(lambda rows: float(gain[rows].mean()), len(gain))


def main() -> None:
    """Classify, print the scores, draw the confusion matrices."""
    choice = parser(__doc__ or "", "classify.png")
    choice.add_argument("--language", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    options = choice.parse_args()
    runtime = choose_runtime(options.runtime, options.model)
    messages = read_lines(DATA / "messages.jsonl")
    messages = [row for row in messages if row["language"] in options.language]
    cells = ["|".join((row["language"], row["sentiment"], row["topic"])) for row in messages]
    examples, rest = train_test_split(messages, train_size=1 / 3, stratify=cells, random_state=1)
    texts, given = ([row["text"] for row in rows] for rows in (rest, examples))
    figure, axes = new_figure(2, 2, (10, 9))
    with tempfile.TemporaryDirectory() as folder:
        # With a store the grid search computes no text twice.
        vectors = GemmaEmbedTransformer(runtime, store=Path(folder) / "vectors.sqlite")
        for row, field in enumerate(DESCRIPTIONS):
            known, true = ([each[field] for each in rows] for rows in (examples, rest))
            words = head(
                TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 4)),
                {"features__analyzer": ["word", "char_wb"]},
            )
            found = {
                "TF-IDF and examples": words.fit(given, known).predict(texts).tolist(),
                "vectors, label descriptions": zero_shot(vectors, texts, field),
                "vectors and examples": head(vectors, {}).fit(given, known).predict(texts).tolist(),
            }
            print(f"\n{field}: {len(given)} examples, {len(texts)} scored")
            for name, labels in found.items():
                accuracy, f1 = scores(true, labels)
                print(f"  {name:28} accuracy {accuracy}   macro F1 {f1}")
            right = {name: np.array(labels) == true for name, labels in found.items()}
            ours = right["vectors and examples"]
            print(
                f"  examples: vectors minus TF-IDF {difference(ours, right['TF-IDF and examples'])}"
            )
            by = {x: np.array([each["language"] == x for each in rest]) for x in options.language}
            parts = ", ".join(f"{name} {ours[rows].mean():.2f}" for name, rows in by.items())
            print(f"  vectors and examples, accuracy by language: {parts}")
            for column, name in enumerate(list(found)[1:]):
                drawn = ConfusionMatrixDisplay.from_predictions(
                    true,
                    found[name],
                    ax=axes[row, column],
                    colorbar=False,
                    cmap="Blues",
                    xticks_rotation=30,
                )
                drawn.ax_.set_title(f"{field}: {name}, {right[name].mean():.0%} right")
    save(figure, options.picture)


if __name__ == "__main__":
    run(main)
