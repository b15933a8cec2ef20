"""Evaluation on one's own texts: files, scores, intervals, settings, the command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime
from langchain_core.documents import Document
from matplotlib.figure import Figure
from scipy import stats
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from gemma_embed import Embedder, cli
from gemma_embed.errors import ConfigurationError, InputTooLong, InvalidInput
from gemma_embed.evaluate import (
    Question,
    Report,
    Row,
    Setting,
    draw_questions,
    evaluate,
    read_passages,
    read_questions,
)
from gemma_embed.evaluate.scores import METRICS, intervals, scored
from gemma_embed.passages import Passage
from gemma_embed.runtimes import Runtime
from gemma_embed.testing import bundled_runtime
from gemma_embed.vectors import cut
from langchain_gemma_embed import passages as langchain_passages

EXAMPLES = Path(__file__).parents[2] / "examples"
PASSAGES = [
    Passage(f"text {row}", str(row), metadata={"title": f"Title {row}"}) for row in range(12)
]
QUESTIONS = [Question(f"question {row}", (str(row),)) for row in range(12)]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return bundled_runtime()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "vectors.sqlite"


@pytest.fixture(scope="module")
def notes(runtime: Runtime, store: Path) -> Report:
    return evaluate(
        read_passages(EXAMPLES / "notes"),
        read_questions(EXAMPLES / "questions.json"),
        runtime,
        two_step=[128],
        candidates=20,
        store=store,
        timed=2,
    )


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


def test_the_notes_are_searched_as_numpy_searches_them(
    notes: Report, runtime: Runtime, store: Path
) -> None:
    passages = read_passages(EXAMPLES / "notes")
    questions = read_questions(EXAMPLES / "questions.json")
    embedder = Embedder(runtime, store=store)
    texts, titles = [each.text for each in passages], [each.metadata["title"] for each in passages]
    documents = embedder.embed_documents(texts, titles)
    asked = embedder.embed([each.text for each in questions], "query")
    sources = [each.source for each in passages]
    gains = np.array([[source in each.documents for source in sources] for each in questions])
    for row in notes.rows:
        if row.setting.width:
            similarities = cut(asked, row.setting.width) @ cut(documents, row.setting.width).T
            if row.setting.candidates:
                first = np.argsort(-similarities, axis=1)[:, : row.setting.candidates]
                similarities = np.full_like(similarities, -1)
                full = np.take_along_axis(asked @ documents.T, first, 1)
                np.put_along_axis(similarities, first, full, 1)
            wanted = ndcg_score(gains, similarities, k=10)
            assert row.intervals["nDCG@10"].mean == pytest.approx(wanted)


def test_a_row_for_each_combination_and_the_yardstick_last(notes: Report) -> None:
    names = [notes.name(row) for row in notes.rows]
    assert names == ["768", "512", "256", "128", "128, then 20 in full", "words (BM25)"]
    assert all(row.milliseconds is not None and row.milliseconds > 0 for row in notes.rows)
    full, words = notes.rows[0].intervals["recall@1"], notes.rows[-1].intervals["recall@1"]
    # As training/MODEL_CARD.md has it for other sets: far above words.
    assert full.mean > 0.8 > 0.6 > words.mean
    assert "words (BM25) loses" in str(notes)
    assert "56 questions can only show differences of about " in str(notes)


def test_a_report_is_json_and_a_picture(
    notes: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads(json.dumps(notes.as_dict()))
    assert [row["bytes"] for row in found["rows"]] == [3072, 2048, 1024, 512, 512, None]
    assert (
        found["rows"][0]["scores"]["recall@1"]["low"]
        < found["rows"][0]["scores"]["recall@1"]["mean"]
    )
    assert found["advice"] == notes.advice()
    notes.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        notes.plot(tmp_path / "no folder" / "plot.png")
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    notes.plot("plot.png")
    # The widths of a runtime take equally long; an axis of microseconds would set them apart.
    start, end = figures[0].axes[1].get_xlim()
    assert start == 0
    assert end > max(row.milliseconds or 0 for row in notes.rows)


def test_nothing_is_computed_a_second_time(tmp_path: Path) -> None:
    fake = FakeRuntime()

    def again(**options: Any) -> Report:
        return evaluate(PASSAGES, QUESTIONS, fake, store=tmp_path / "s", timed=0, **options)

    again(widths=[768], prompts=(True, False), titles=(True, False))
    # With prompts, titles on and off; without, the same; and the questions twice.
    assert len(fake.texts) == len(set(fake.texts)) == 6 * 12
    report = again(prompts=(True, False), titles=(True, False), two_step=[128, 256], candidates=10)
    assert len(fake.texts) == 6 * 12
    assert len(report.rows) == 4 * 6 + 1
    assert {row.milliseconds for row in report.rows} == {None}


def test_what_the_model_reads_is_as_the_setting_says() -> None:
    fake = FakeRuntime()
    evaluate(
        PASSAGES[:1], QUESTIONS[:1], fake, prompts=(True, False), titles=(True, False), timed=0
    )
    assert set(fake.texts) == {
        "task: search result | query: question 0",
        "title: Title 0 | text: text 0",
        "title: none | text: text 0",
        "question 0",
        "Title 0\ntext 0",
        "text 0",
    }


def test_a_symmetric_task_is_that_of_both_sides() -> None:
    fake = FakeRuntime()
    options: dict[str, Any] = {"widths": [768], "task": "sentence similarity", "timed": 0}
    report = evaluate(PASSAGES[:1], QUESTIONS[:1], {"fake": fake}, **options)
    prompt = "task: sentence similarity | query: "
    assert set(fake.texts) == {f"{prompt}question 0", f"{prompt}text 0"}
    # Its prompt has no place for a title.
    assert report.name(report.rows[0]) == "fake, 768, no titles"


def test_policies_for_long_texts_are_compared() -> None:
    passages = [*PASSAGES, Passage("long " * 20, "long")]
    questions = [Question("q", ("long",))]
    fake = FakeRuntime(max_tokens=60)
    with pytest.raises(InputTooLong) as caught:
        evaluate(passages, questions, fake, timed=0)
    assert caught.value.index == 12
    assert str(caught.value).endswith("(passage long)")
    with pytest.raises(InputTooLong, match=r"\(question 0\)$"):
        evaluate(PASSAGES, [Question("long " * 20, ("1",))], fake, timed=0)
    report = evaluate(
        passages, questions, fake, widths=[768], overlong=("truncate", "split"), timed=0
    )
    assert [report.name(row) for row in report.rows] == [
        "768, truncate",
        "768, split",
        "words (BM25)",
    ]


def test_documents_are_ranked_by_their_best_passage(runtime: Runtime) -> None:
    parts = [
        "Bread rises in the oven.",
        "Bread dough needs flour.",
        "Bread is baked.",
        "The cat sleeps.",
    ]
    passages = [
        Passage(text, str(row), document="bread" if row < 3 else "cats")
        for row, text in enumerate(parts)
    ]
    questions = [Question("Where is the cat?", documents=("cats",))]
    (row,) = evaluate(passages, questions, runtime, widths=[768], words=False, timed=0).rows
    assert row.scores["nDCG@10"] == 1
    far = [Question("How is bread baked?", documents=("cats",))]
    (row,) = evaluate(passages, far, runtime, widths=[768], words=False, timed=0).rows
    # Second of two documents, behind three passages of the other one.
    assert row.scores["MRR@10"] == 0.5


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


def test_files_are_read_with_titles_and_in_parts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    long = "\n\n".join(["word " * 150] * 4)
    (tmp_path / "a" / "b.md").write_text(f"\ufeff# A title\n\n{long}\n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("no heading")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    (tmp_path / "E.MD").write_bytes(b"# Windows\r\n\r\nTwo\r\n\r\nparts\r\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    windows, first, second, third = read_passages(tmp_path)
    assert windows == Passage("Two\n\nparts", "E.MD#1", "E.MD", {"title": "Windows"})
    assert (first.id, second.id, third.id) == ("a/b.md#1", "a/b.md#2", "c.txt#1")
    assert first.source == second.source == "a/b.md"
    assert dict(first.metadata) == dict(second.metadata) == {"title": "A title"}
    assert dict(third.metadata) == {}
    assert f"{first.text}\n\n{second.text}" == long.strip()


def test_a_listing_without_an_empty_line_is_cut_at_its_lines(tmp_path: Path) -> None:
    listing = "\n".join(f"{number} 0x{number:08x}" for number in range(400))
    (tmp_path / "a.md").write_text(
        f"{listing}\n\n{'word ' * 500}\n\n{'x' * 2500}\n\n{'y' * 2000} z"
    )
    parts = [each.text for each in read_passages(tmp_path)]
    assert max(map(len, parts)) <= 2000
    assert "".join(" ".join(parts).split()) == "".join((tmp_path / "a.md").read_text().split())
    lines = {line for part in parts for line in part.splitlines()}
    assert set(listing.splitlines()) <= lines


def test_jsonl_is_read(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "one", "id": 1, "title": "T", "document": 2}\r\n\r\n'
        b'{"text": "a\xe2\x80\xa8b"}\r\n'
    )
    for name in ("p.ndjson", "P.JSONL", "p.jsonl"):
        file = file.rename(tmp_path / name)
        first, second = read_passages(file)
        assert first == Passage("one", "1", "2", {"title": "T"})
        assert second.text == "a\u2028b"
    file.write_text('{"question": "q", "passage": [1, "2"]}\n{"question": "r", "document": "d"}')
    assert [(each.passages, each.documents) for each in read_questions(file)] == [
        (("1", "2"), ()),
        ((), ("d",)),
    ]
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\nthree\n")
    assert [(each.id, each.text) for each in read_passages(lines)] == [("1", "one"), ("3", "three")]


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (read_passages, b'{"text": "a"}\n{"text": ', "p.jsonl, line 2: no valid JSON"),
        (read_passages, b'{"text": "a"}\n[1]', "p.jsonl, line 2: a list, not an object"),
        (read_passages, b'{"id": "secret"}', "p.jsonl, line 1: the passage has no text"),
        (read_passages, b'{"text": "a", "metadata": 3}', "p.jsonl, line 1: the metadata is int"),
        (read_passages, b"\xff\xfe", "p.jsonl cannot be read: it is not UTF-8"),
        (read_passages, b"\n", "contains no passages"),
        (read_questions, b'{"question": "secret"}', "p.jsonl, line 1: a question needs"),
        (read_questions, b'{"question": "secret", "passage": "a", "document": "b"}', "line 1: a q"),
        (read_questions, b'{"question": 3, "passage": "a"}', "p.jsonl, line 1: a question needs"),
        (read_questions, b"[" * 100_000, "p.jsonl, line 1: no valid JSON"),
        (read_questions, b'{"question": " ", "passage": "a"}', "line 1: a question needs"),
        (read_questions, b'{"question": "secret", "passage": ["a", null]}', "line 1: an id is not"),
        (read_questions, b"", "contains no questions"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    read: Callable[[Path], object], content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(InvalidInput, match=re.escape(said)) as caught:
        read(tmp_path / "p.jsonl")
    assert "secret" not in str(caught.value)


def test_an_id_that_two_passages_have_is_refused() -> None:
    fake = FakeRuntime()
    with pytest.raises(InvalidInput, match="text at index 12: the id '0' is that of an earlier"):
        evaluate([*PASSAGES, Passage("another", "0")], QUESTIONS, fake)
    assert fake.calls == 0
    parts = [Passage("without ids"), Passage("are several"), *PASSAGES]
    assert evaluate(parts, QUESTIONS, fake, widths=[128, 128], timed=0).passages == 14


def test_an_answer_that_is_unknown_is_named(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "q", "passage": "0"}\n{"question": "r", "passage": "99"}')
    with pytest.raises(InvalidInput, match=r"q.jsonl, line 2: there is no passage '99' among"):
        evaluate(PASSAGES, read_questions(file), FakeRuntime())
    with pytest.raises(InvalidInput, match="question 0: there is no document 'x'"):
        evaluate(PASSAGES, [Question("q", documents=("x",))], FakeRuntime())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": [100]}, "dimensions=100"),
        ({"widths": []}, "at least one"),
        ({"prompts": ()}, "at least one"),
        ({"overlong": ("cut",)}, "overlong='cut'"),
        ({"two_step": [128]}, "100 candidates of 12 passages"),
        ({"two_step": [768], "candidates": 10}, "a width below the full one"),
        ({"widths": [768], "overlong": ("error", "cut")}, "overlong='cut'"),
        ({"timed": -1}, "at least one"),
        ({"task": "searching"}, "unknown task"),
        ({"task": "document"}, "as documents"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(options: dict[str, Any], said: str) -> None:
    fake = FakeRuntime()
    with pytest.raises(ConfigurationError, match=said):
        evaluate(PASSAGES, QUESTIONS, fake, **options)
    assert fake.calls == 0


def test_what_is_no_question_is_refused() -> None:
    with pytest.raises(InvalidInput, match="question 1 is dict, not a Question"):
        evaluate(PASSAGES, [QUESTIONS[0], {"question": "q"}], FakeRuntime())  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="passages are a str, not a tuple"):
        Question("q", ("mars"))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="not both"):
        Question("q", ("mars",), ("planets",))


def test_what_is_no_runtime_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown runtime 'torch'"):
        evaluate(PASSAGES, QUESTIONS, "torch")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="runtime is a list, not a runtime"):
        evaluate(PASSAGES, QUESTIONS, [FakeRuntime()])  # type: ignore[arg-type]


def test_documents_of_a_framework_are_translated(runtime: Runtime) -> None:
    documents = [Document("Mars is red.", metadata={"source": "mars"}), Document("Venus is hot.")]
    questions = [Question("Which planet is red?", documents=("mars",))]
    report = evaluate(langchain_passages(documents), questions, runtime, widths=[256], timed=0)
    assert report.rows[0].scores["recall@1"] == 1
    with pytest.raises(ConfigurationError, match=r"langchain_gemma_embed.passages\(...\)"):
        evaluate(documents, questions, runtime)


def test_drawn_questions_are_taken_out_of_their_passages() -> None:
    passages = [
        Passage("Body of the first.", "a", metadata={"title": "First"}),
        Passage(
            "This sentence is the question. And this is what is left.", metadata={"title": "Both"}
        ),
        Passage(
            "これは質問になる文です、とても長いです。残りの文はここにあります、これも長いです。",
            metadata={"title": "Both"},
        ),
        Passage("Too short.", "d"),
        Passage("यह पहला वाक्य है जो प्रश्न बनता है। यह दूसरा वाक्य है जो बचता है।", "hi"),
        Passage("* A sentence goes\n  on in the next line. The rest of it is here.", "wrapped"),
        Passage("## What to do on Mondays\n\nOpen the doors, then wait.", "heading"),
        Passage("    print(a_long_line_of_code)\n\nIt prints what was given.", "listing"),
        Passage("| a table | of two columns |\n\nIt has nothing in it.", "table"),
        Passage(f"{'number 1 ' * 50}\n\nIt is a log of many lines.", "log"),
    ]
    kept, questions = draw_questions(passages)
    assert {(each.text, *each.passages, each.drawn) for each in questions} == {
        ("First", "a", True),
        ("This sentence is the question.", "row 1", True),
        ("これは質問になる文です、とても長いです。", "row 2", True),
        ("यह पहला वाक्य है जो प्रश्न बनता है।", "hi", True),
        ("A sentence goes on in the next line.", "wrapped", True),
        ("What to do on Mondays", "heading", True),
    }
    assert dict(kept[0].metadata) == {}
    assert kept[1].text == "And this is what is left."
    assert kept[3] == passages[3]
    assert len(draw_questions(passages, most=2)[1]) == 2
    said = str(evaluate(kept, questions, FakeRuntime(), widths=[768], timed=0))
    assert "weaker evidence than questions that people asked" in said
    with pytest.raises(InvalidInput, match="no question can be drawn"):
        draw_questions(passages[3:4])


def test_the_command_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"id": "m", "text": "Mars is red."}\n{"id": "v", "text": "Venus."}'
    )
    (tmp_path / "q.jsonl").write_text('{"question": "Which planet is red?", "passage": "m"}')
    call = [
        "evaluate",
        "onnx",
        "onnx:int8",
        "--model",
        "bundled",
        "--passages",
        str(tmp_path / "p.jsonl"),
    ]
    call += ["--questions", str(tmp_path / "q.jsonl"), "--store", str(tmp_path / "s")]
    call += ["--widths", "256", "--plot", str(tmp_path / "p.svg")]
    with monkeypatch.context() as patched:
        patched.setattr(sys.stderr, "isatty", lambda: True)
        assert cli.main(call) == 0
    printed = capsys.readouterr()
    assert "onnx:int8, 256" in printed.out
    # The passages with each runtime.
    assert printed.err.count("2 of 2 texts embedded\n") == printed.err.count("\n") == 2
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert cli.main([*call, "--json", "--timed", "0"]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["rows"]) == 3
    assert not printed.err
    assert cli.main([*call, "--widths", "9"]) == 2
    assert "dimensions=9" in capsys.readouterr().err
    # What was found is printed, although the picture cannot be written.
    assert cli.main([*call, "--timed", "0", "--plot", str(tmp_path / "p.nothing")]) == 2
    printed = capsys.readouterr()
    assert "onnx:int8, 256" in printed.out
    assert "p.nothing cannot be written" in printed.err
    (tmp_path / "q.jsonl").write_text('{"question": "?", "passage": "x"}')
    assert cli.main(call) == 1
    assert "q.jsonl, line 1: there is no passage 'x'" in capsys.readouterr().err


def test_the_documented_command_runs(
    notes: Report, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = EXAMPLES.parent
    page = (root / "docs" / "evaluate.md").read_text().partition("<!-- evaluate command -->")[2]
    program, *call = page.partition("```sh\n")[2].partition("\n")[0].split()
    assert program == "gemma-embed"
    monkeypatch.chdir(root)
    # The fixture's store has the vectors, but not those of int8; and no picture is left here.
    assert call[-2:] == ["--plot", "notes.png"]
    call.remove("onnx:int8")
    assert cli.main([*call[:-2], "--store", str(store), "--timed", "0"]) == 0
    printed = capsys.readouterr().out
    shown = f"{100 * notes.rows[0].intervals['recall@1'].mean:.1f}"
    assert re.search(rf"^onnx, 768 +{shown} ", printed, re.MULTILINE)
    assert f"onnx, 768             {shown} " in page
