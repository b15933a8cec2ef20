"""Evaluation on one's own texts: settings, refusals, the command."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime
from langchain_core.documents import Document
from matplotlib.figure import Figure
from sklearn.metrics import ndcg_score

from gemma_embed import Embedder, cli
from gemma_embed.errors import ConfigurationError, InputTooLong, InvalidInput
from gemma_embed.evaluate import (
    Question,
    Report,
    evaluate,
    read_passages,
    read_questions,
)
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
