"""Group the paragraphs of a folder, name the groups, draw a map, and find near-duplicates.

Run: python examples/cluster.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import NOTES, choose_runtime, read_passages, run
from learning import new_figure, parser, save
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from gemma_embed import Embedder
from gemma_embed.vectors import Vectors

Labels = NDArray[np.intp]
FEWEST = 8  # paragraphs


def paragraphs(folder: Path, least: int = 80) -> tuple[list[str], list[str]]:
    """Return the paragraphs of this many characters, and the title of each one's note."""
    texts, titles = [], []
    for passage in read_passages(folder):
        for part in re.split(r"\n\s*\n", passage.text):
            if len(part) >= least:
                texts.append(" ".join(part.split()))
                titles.append(passage.title)
    return texts, titles


def grouped(vectors: Vectors, method: str) -> Labels:
    """Give each vector the number of its group; HDBSCAN gives -1 to what belongs to none.

    K-means takes the number of groups, at most 24, whose groups are farthest apart (silhouette).
    """
    if method == "hdbscan":
        # Density says little in hundreds of dimensions.
        narrow = PCA(min(10, len(vectors) - 1), random_state=1).fit_transform(vectors)
        found: Labels = HDBSCAN(min_cluster_size=3, copy=True).fit_predict(narrow)
        return found
    counts = range(2, max(3, min(25, len(vectors) // 3)), 2)
    tried = [KMeans(count, n_init=4, random_state=1).fit_predict(vectors) for count in counts]
    return max(tried, key=lambda labels: silhouette_score(vectors, labels, metric="cosine"))


def names(texts: Sequence[str], labels: Labels, count: int = 3) -> dict[int, str]:
    """Name each group by the words that its texts have and the other groups' have not."""
    groups = sorted(set(labels[labels >= 0].tolist()))
    if not groups:
        return {}
    joined = [" ".join(np.array(texts)[labels == group]) for group in groups]
    # Words that many groups have name none; longer runs of letters are sentences without spaces.
    word = r"\b[^\W\d_]{4,15}\b"
    most = max(1, len(groups) // 3)
    words = TfidfVectorizer(token_pattern=word, max_df=most, sublinear_tf=True)
    weights = words.fit_transform(joined).toarray()
    vocabulary = words.get_feature_names_out()
    found = {}
    for group, row in zip(groups, weights, strict=True):
        best = [column for column in np.argsort(-row)[:count] if row[column] > 0]
        found[group] = ", ".join(vocabulary[best]) or f"group {group + 1}"
    return found


def near_duplicates(vectors: Vectors, most: int = 5) -> list[tuple[float, int, int]]:
    """Return the most similar pairs, the most similar first: cosine, row, row."""
    likeness = np.triu(vectors @ vectors.T, 1)
    best = np.argsort(-likeness, axis=None)[:most]
    pairs = zip(*np.unravel_index(best, likeness.shape), strict=True)
    return [(float(likeness[left, right]), int(left), int(right)) for left, right in pairs]


def draw(vectors: Vectors, labels: Labels, named: dict[int, str]) -> Any:
    """Draw a map: near points are near texts."""
    places = TSNE(perplexity=min(15, len(vectors) // 4), metric="cosine", random_state=1)
    points = places.fit_transform(vectors)
    figure, axes = new_figure(1, 1, (11, 7.5))
    axis = axes[0, 0]
    axis.scatter(*points[labels < 0].T, s=18, color="lightgrey")
    for group, name in named.items():
        inside = points[labels == group]
        dots = axis.scatter(*inside.T, s=28)
        axis.annotate(
            name,
            np.median(inside, axis=0),
            fontsize=8,
            ha="center",
            va="bottom",
            xytext=(0, 7),
            textcoords="offset points",
            bbox={"boxstyle": "round", "fc": "white", "ec": dots.get_facecolor()[0], "alpha": 0.8},
        )
    axis.set(xticks=[], yticks=[], title=f"{len(vectors)} paragraphs, {len(named)} groups")
    return figure


def main() -> None:
    """Group, name, map; then the most similar pairs."""
    options = parser(__doc__ or "", "cluster.png")
    options.add_argument("--folder", type=Path, default=NOTES, help="texts to group")
    options.add_argument("--method", choices=["kmeans", "hdbscan"], default="kmeans")
    chosen = options.parse_args()
    texts, titles = paragraphs(chosen.folder)
    if len(set(texts)) < FEWEST:
        sys.exit(
            f"{chosen.folder}: {len(set(texts))} different paragraphs of 80 characters or more are "
            f"too few for groups, which need at least {FEWEST}"
        )
    embedder = Embedder(choose_runtime(chosen.runtime, chosen.model), overlong="truncate")
    vectors = embedder.embed(texts, "clustering")
    labels = grouped(vectors, chosen.method)
    named = names(texts, labels)
    for group, name in named.items():
        rows = np.flatnonzero(labels == group)
        central = rows[np.argmax(vectors[rows] @ vectors[rows].mean(axis=0))]
        print(f"\n{name} ({len(rows)} paragraphs)\n  {titles[central]}: {texts[central][:90]}...")
    print("\nMost similar pairs:")
    for score, left, right in near_duplicates(embedder.embed(texts, "sentence similarity")):
        print(f"  {score:.2f}  {titles[left]}: {texts[left][:60]}...")
        print(f"        {titles[right]}: {texts[right][:60]}...")
    save(draw(vectors, labels, named), chosen.picture)


if __name__ == "__main__":
    run(main)
