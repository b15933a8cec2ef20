"""verify_collection: how the vectors of a collection that exists were made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from fakes import vector_of

from gemma_embed import Embedder, cli
from gemma_embed.chroma import ChromaIndex, Passage
from gemma_embed.errors import CollectionError
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes import Batch
from gemma_embed.testing import bundled_runtime
from gemma_embed.vectors import Vectors
from gemma_embed.verify import CollectionVerdict, verify_collection

NOTES = Path(__file__).parents[2] / "examples" / "notes"
TEXTS = [path.read_text()[:300] for path in sorted(NOTES.glob("*.md"))[:12]]
TITLES = [f"Heading {number}" for number in range(12)]
PROMPTS: Prompts = bundled_runtime().prompts

Made = Callable[[str, str], Any]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    with chromadb.PersistentClient(
        str(tmp_path / "chroma"), Settings(anonymized_telemetry=False)
    ) as opened:
        yield opened


def vectors_of(inputs: list[str]) -> Vectors:
    made = np.empty((len(inputs), 768), np.float32)
    for batch in bundled_runtime().embed(inputs):
        assert isinstance(batch, Batch)
        made[list(batch.rows)] = batch.vectors
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def filled(client: Any, vectors: Any, *, titles: bool = True) -> Any:
    collection = client.create_collection(
        "notes", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    collection.add(
        ids=[str(number) for number in range(len(TEXTS))],
        documents=TEXTS,
        metadatas=[{"title": title} for title in TITLES] if titles else None,
        embeddings=vectors,
    )
    return collection


def right(text: str, title: str) -> str:
    return PROMPTS.prompted(text, "document", title)


@pytest.mark.parametrize(
    ("made", "form", "causes"),
    [
        (right, "document", ()),
        (lambda text, title: text, "no_prompt", ("no_prompt_on_documents",)),
        (
            lambda text, title: text.replace("\n", " "),
            "no_prompt, newlines_to_spaces",
            ("no_prompt_on_documents", "newlines_to_spaces"),
        ),
        (
            lambda text, title: PROMPTS.prompted(text, "document"),
            "title_dropped",
            ("title_dropped",),
        ),
        (
            lambda text, title: PROMPTS.prompted(text, "query"),
            "query",
            ("query_prompt_on_documents",),
        ),
        (
            lambda text, title: PROMPTS.prompted(text, "clustering"),
            "clustering",
            ("other_task",),
        ),
    ],
)
def test_the_input_of_an_index_is_named(
    client: Any, made: Made, form: str, causes: tuple[str, ...]
) -> None:
    inputs = [made(text, title) for text, title in zip(TEXTS, TITLES, strict=True)]
    verdict = verify_collection(filled(client, vectors_of(inputs)), bundled_runtime())
    if "newlines" in form:
        # This model's tokenizer reads a newline as a space.
        form, causes = "no_prompt", causes[:1]
    assert verdict.causes == causes
    assert verdict.inputs == {form: 12}
    assert verdict.ok == (form == "document")


def test_an_index_without_titles_is_ok(client: Any) -> None:
    vectors = vectors_of([PROMPTS.prompted(text, "document") for text in TEXTS])
    assert verify_collection(filled(client, vectors, titles=False), bundled_runtime()).ok


def test_rows_of_two_origins_are_counted(client: Any) -> None:
    inputs = [right(text, title) for text, title in zip(TEXTS, TITLES, strict=True)]
    inputs[:5] = TEXTS[:5]
    verdict = verify_collection(filled(client, vectors_of(inputs)), bundled_runtime())
    assert verdict.inputs == {"document": 7, "no_prompt": 5}
    assert verdict.causes == ("no_prompt_on_documents",)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda vectors: vectors[:, :256], "cut_not_normalised"),
        (lambda vectors: 5 * vectors, "not_normalised"),
        (lambda vectors: vectors[:, :300], "width"),
        (lambda vectors: np.array([vector_of(text) for text in TEXTS]), "another_model"),
        (lambda vectors: vectors + 0.3 * np.abs(vectors), "other_numbers"),
    ],
)
def test_other_numbers_are_named(
    client: Any, change: Callable[[Vectors], Vectors], cause: str
) -> None:
    inputs = [right(text, title) for text, title in zip(TEXTS, TITLES, strict=True)]
    changed = change(vectors_of(inputs))
    if cause not in ("not_normalised", "cut_not_normalised"):
        changed = changed / np.linalg.norm(changed, axis=1, keepdims=True)
    assert verify_collection(filled(client, changed), bundled_runtime()).cause == cause


def test_a_cut_that_was_normalised_agrees(client: Any) -> None:
    inputs = [right(text, title) for text, title in zip(TEXTS, TITLES, strict=True)]
    narrow = vectors_of(inputs)[:, :128]
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    assert verify_collection(filled(client, narrow), bundled_runtime()).ok


def test_an_index_of_this_package_is_ok(tmp_path: Path) -> None:
    index = ChromaIndex(tmp_path / "chroma", "notes", Embedder(bundled_runtime()))
    index.ingest(
        Passage(text, metadata={"title": title, "source": title})
        for text, title in zip(TEXTS, TITLES, strict=True)
    )
    verdict = verify_collection(index.open(), bundled_runtime(), rows=8)
    assert verdict.ok, str(verdict)
    assert verdict.rows == 8


def test_an_empty_collection_is_an_error(client: Any) -> None:
    empty = client.create_collection("empty", embedding_function=None)
    with pytest.raises(CollectionError, match="nothing to compare"):
        verify_collection(empty, bundled_runtime())


def test_the_command_reads_a_folder(
    client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(client, vectors_of(TEXTS))
    call = ["verify", "onnx", "--model", "bundled", "--chroma", str(tmp_path / "chroma")]
    assert cli.main(call) == 1
    out = capsys.readouterr().out
    assert "notes: 0 of 12 rows agree" in out
    assert "cause: no_prompt_on_documents" in out
    assert cli.main([*call, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["runtime"]["ok"] is True
    assert found["collection"]["inputs"] == {"no_prompt": 12}
    assert cli.main([*call, "--collection", "other"]) == 1
    assert "notes" in capsys.readouterr().err
    assert cli.main([*call[:-1], str(tmp_path)]) == 1
    assert "chroma.sqlite3" in capsys.readouterr().err
    assert not any(text in out for text in TEXTS)


def test_a_verdict_says_how_many_rows(client: Any) -> None:
    verdict = CollectionVerdict("notes", 12, {"document": 12}, (), 1.0)
    assert str(replace(verdict, inputs={"no_prompt": 12})).startswith("notes: 0 of 12 rows agree")
