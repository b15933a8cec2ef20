"""Scores, their intervals, and what these allow to say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from gemma_embed.evaluate import (
    Report,
    Row,
    Setting,
)
from gemma_embed.evaluate.scores import METRICS, intervals, scored


def test_scores_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    similarities = draw.normal(size=(50, 30))
    order = np.argsort(-similarities, axis=1)[:, :10]
    one = draw.integers(30, size=50)
    several = [{int(row), int((row + 7) % 30)} for row in one]
    ranked = [[str(row) for row in rows] for rows in order]
    found = scored([{str(row)} for row in one], ranked)
    for k in (1, 5, 10):
        wanted = top_k_accuracy_score(one, similarities, k=k, labels=range(30))
        assert found[f"recall@{k}"].mean() == pytest.approx(wanted)
    places = [
        list(rows).index(row) + 1 if row in rows else np.inf
        for rows, row in zip(order, one, strict=True)
    ]
    assert found["MRR@10"] == pytest.approx([1 / place for place in places])
    gains = np.array([[column in right for column in range(30)] for right in several])
    found = scored([{str(row) for row in right} for right in several], ranked)
    assert found["nDCG@10"].mean() == pytest.approx(ndcg_score(gains, similarities, k=10))


def test_nothing_found_counts_as_wrong() -> None:
    found = scored([{"a"}, {"b"}], [["a"], []])
    assert {name: list(found[name]) for name in METRICS} == {name: [1.0, 0.0] for name in METRICS}


def test_intervals_are_those_of_scipy() -> None:
    values = np.random.default_rng(2).integers(-1, 2, size=(3, 80)).astype(float)
    for row, found in zip(values, intervals(values, (-1.0, 1.0), 0.9), strict=True):
        wanted = stats.bootstrap(
            (np.append(row, [-1.0, 1.0]),),
            np.mean,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        assert found.mean == pytest.approx(row.mean())
        assert found.low == pytest.approx(wanted.low, abs=0.015)
        assert found.high == pytest.approx(wanted.high, abs=0.015)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(4)
    samples = (draw.random((400, 60)) < 0.9).astype(float)
    found = intervals(samples, (0.0, 1.0))
    assert 0.92 <= np.mean([each.low <= 0.9 <= each.high for each in found]) <= 0.99


def report_of(differences: list[list[float]]) -> Report:
    settings = [Setting("first", 768), *(Setting("other", 128) for _ in differences)]
    base = np.full(len(differences[0]), 0.5)
    values = [base, *(base + np.array(each) for each in differences)]
    rows = [
        Row(*pair) for pair in zip(settings, [{"recall@1": each} for each in values], strict=True)
    ]
    return Report(tuple(rows), 1, len(base))


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ([0.5] * 10 + [0.0] * 90, "- other, 128 gains 5.0 (1."),
        ([-0.5] * 10 + [0.0] * 90, "- other, 128 loses 5.0 (1."),
        ([0.0] * 400, "- other, 128 loses nothing, or less than 0."),
        ([0.0] * 40, "Not decided: other, 128. 40 questions can only show"),
        ([0.5, -0.5] * 10 + [0.0] * 80, "Not decided: other, 128. 100 questions"),
    ],
)
def test_advice_says_what_the_interval_supports(difference: list[float], said: str) -> None:
    assert said in "\n".join(report_of([difference]).advice())


def test_many_settings_need_a_larger_difference() -> None:
    difference = [-0.5] * 12 + [0.0] * 88
    assert "other, 128 loses" in str(report_of([difference]).advice())
    assert "other, 128 loses" not in str(report_of([difference] * 40).advice())


@pytest.mark.parametrize(("first", "said"), [(768, True), (128, False), (64, False)])
def test_a_smaller_index_is_smaller_than_the_first(first: int, said: bool) -> None:
    report = report_of([[0.0] * 400])
    report = replace(
        report, rows=(replace(report.rows[0], setting=Setting("first", first)), report.rows[1])
    )
    lines = "\n".join(report.advice())
    assert ("smallest index that loses less than 2 points: other, 128." in lines) == said
