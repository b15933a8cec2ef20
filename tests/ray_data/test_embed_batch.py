"""The class for map_batches without Ray, and its results in Parquet files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import growth
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from fakes import FakeRuntime

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.chroma import ChromaIndex
from gemma_embed.compact import packed
from gemma_embed.errors import (
    BadResponse,
    CollectionDamaged,
    CollectionMismatch,
    ConfigurationError,
    ConnectionFailed,
    EmbeddingError,
    InvalidInput,
)
from gemma_embed.one_text import TextFaults
from gemma_embed.parquet import finished_ids, load
from gemma_embed.passages import Passage
from gemma_embed.ray import EmbedBatch
from gemma_embed.ray.missing import unfinished

TEXTS = ["Mars is called the Red Planet.", "Venus is hot.", "Saturn has rings."]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder("onnx", "bundled")


def table(*texts: Any, **columns: Any) -> pa.Table:
    return pa.table({"id": [str(n) for n in range(len(texts))], "text": list(texts), **columns})


def vectors_of(result: pa.Table) -> Any:
    return np.array(result["vector"].to_pylist())


def job(folder: Path, batch: pa.Table, name: str = "a.parquet", **options: Any) -> pa.Table:
    folder.mkdir(exist_ok=True)
    result = EmbedBatch("onnx", "bundled", **options)(batch)
    pq.write_table(result, folder / name)
    return result


def test_rows_keep_their_order_and_get_four_columns(embedder: Embedder) -> None:
    result = EmbedBatch("onnx", "bundled")(table(*TEXTS, page=[1, 2, 3]))
    assert result.column_names == ["id", "text", "page", "vector", "fingerprint", "status", "error"]
    assert result.schema.field("vector").type == pa.list_(pa.float32(), 768)
    assert np.array_equal(vectors_of(result), embedder.embed(TEXTS))
    assert result["fingerprint"].to_pylist() == [embedder.fingerprint] * 3
    assert result["status"].to_pylist() == ["ok"] * 3
    assert result["error"].to_pylist() == [None] * 3


def test_numbers_of_other_types(embedder: Embedder) -> None:
    whole = embedder.replaced(dimensions=256).embed(TEXTS)
    for kind, expected in (("float16", whole.astype(np.float16)), ("int8", packed(whole, "int8"))):
        result = EmbedBatch("onnx", "bundled", dimensions=256, vector_type=kind)(table(*TEXTS))  # type: ignore[arg-type]
        assert result.schema.field("vector").type == pa.list_(pa.from_numpy_dtype(kind), 256)
        assert np.array_equal(vectors_of(result), expected)


def test_titles_are_embedded(embedder: Embedder) -> None:
    titles = ["Mars", None, "Saturn"]
    embed = EmbedBatch("onnx", "bundled", title_column="title")
    result = embed(table(*TEXTS, title=titles))
    assert np.array_equal(vectors_of(result), embedder.embed(TEXTS, titles=titles))


def test_a_poisonous_row_has_a_status_and_the_others_their_vectors(embedder: Embedder) -> None:
    # Arrow does not look at the bytes of a text: a lone surrogate, as some writers leave it.
    data = [TEXTS[0].encode(), None, b"secret \xed\xa0\x80", b"secret " * 3000, TEXTS[1].encode()]
    texts = pa.Array.from_buffers(pa.string(), 5, pa.array(data, pa.binary()).buffers())
    result = EmbedBatch("onnx", "bundled")(pa.table({"text": texts}))
    assert result["status"].to_pylist() == ["ok", "invalid", "invalid", "too_long", "ok"]
    assert [each is None for each in result["vector"].to_pylist()] == [
        False,
        True,
        True,
        True,
        False,
    ]
    good = np.array([result["vector"][0].as_py(), result["vector"][4].as_py()], np.float32)
    assert np.abs(good - embedder.embed(TEXTS[:2])).max() <= 1e-6
    errors = result["error"].to_pylist()
    assert "NoneType" in errors[1]
    assert "surrogate" in errors[2]
    assert "3003 tokens" in errors[3]
    assert "secret" not in str(errors)


def test_only_poison_and_nothing_at_all() -> None:
    result = EmbedBatch("onnx", "bundled")(table(*[None] * 300))
    assert set(result["status"].to_pylist()) == {"invalid"}
    empty = EmbedBatch("onnx", "bundled")(table(*TEXTS).slice(0, 0))
    assert empty.schema.field("vector").type == pa.list_(pa.float32(), 768)


def test_a_server_that_cannot_be_reached_is_nobodys_status() -> None:
    runtime = {"runtime": "openai", "model": "any", "host": "http://127.0.0.1:1", "max_retries": 0}
    with pytest.raises(ConnectionFailed):
        EmbedBatch(runtime)(table(*TEXTS))


def test_a_runtime_that_fails_on_many_texts_is_at_fault_itself() -> None:
    faults = TextFaults()
    assert all(faults.excuses(InvalidInput("no text", index=n)) for n in range(9))
    told = [faults.excuses(BadResponse("zeros", index=n)) for n in range(5)]
    assert told == [True, True, True, False, False]
    assert not TextFaults().excuses(EmbeddingError("out of order"))
    assert not TextFaults().excuses(BadResponse("no vectors"))


def test_options_that_cannot_work_are_refused(fake: FakeRuntime) -> None:
    with pytest.raises(ConfigurationError, match="runtime_settings"):
        EmbedBatch(fake)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="settings"):
        EmbedBatch({"runtime": "onnx"}, "bundled")
    with pytest.raises(ConfigurationError, match="vector_type"):
        EmbedBatch("onnx", "bundled", vector_type="float64")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="title_column"):
        EmbedBatch("onnx", "bundled", task="clustering", title_column="title")
    with pytest.raises(ConfigurationError, match="threds"):
        EmbedBatch({"runtime": "onnx", "threds": 2})
    with pytest.raises(ConfigurationError, match="normalize"):
        EmbedBatch("onnx", "bundled", normalize=True)  # type: ignore[arg-type]


def test_tables_that_cannot_be_meant_are_refused() -> None:
    embed = EmbedBatch("onnx", "bundled")
    with pytest.raises(ConfigurationError, match="batch_format"):
        embed({"text": np.array(TEXTS)})
    with pytest.raises(ConfigurationError, match="int64"):
        embed(table(1, 2))
    with pytest.raises(ConfigurationError, match="'status' already"):
        embed(table(*TEXTS, status=["new"] * 3))


def test_what_is_finished(tmp_path: Path, embedder: Embedder) -> None:
    folder, own = tmp_path / "results", embedder.fingerprint
    assert len(finished_ids(folder, own)) == 0
    result = job(folder, table(TEXTS[0], None, TEXTS[1]))
    again = pa.array(["ok", "invalid", "failed"])
    place = result.schema.get_field_index("status")
    pq.write_table(result.set_column(place, "status", again), folder / "a.parquet")
    assert finished_ids(folder, own).to_pylist() == ["0", "1"]
    with pytest.raises(CollectionMismatch, match="0123"):
        finished_ids(folder, "0123")
    with pytest.raises(CollectionDamaged, match="no column 'key'"):
        finished_ids(folder, own, id_column="key")
    # More ids than one array of Arrow's has room for stay apart, as they were read.
    job(folder, table(TEXTS[2]), "b.parquet")
    assert finished_ids(folder, own).num_chunks == 2
    job(folder / "page=1", table(TEXTS[2]))
    with pytest.raises(CollectionDamaged, match="folder 'page=1'"):
        finished_ids(folder, own)


def test_codes_and_vectors_do_not_share_a_folder(tmp_path: Path, embedder: Embedder) -> None:
    job(tmp_path, table(*TEXTS))
    codes = EmbedBatch("onnx", "bundled", vector_type="int8")
    assert codes.fingerprint != embedder.fingerprint
    assert set(codes(table(*TEXTS))["fingerprint"].to_pylist()) == {codes.fingerprint}
    with pytest.raises(CollectionMismatch, match="int8"):
        finished_ids(tmp_path, codes.fingerprint)


def test_float16_and_float32_do_not_share_a_job(tmp_path: Path, embedder: Embedder) -> None:
    job(tmp_path, table(*TEXTS[:2]))
    half = EmbedBatch("onnx", "bundled", vector_type="float16")
    with pytest.raises(CollectionMismatch, match=f"not {embedder.fingerprint}-float16"):
        finished_ids(tmp_path, half.fingerprint)
    # Files that were put into one folder by hand are each read as what they are.
    job(tmp_path, table(TEXTS[2]), "b.parquet", vector_type="float16")
    with pytest.raises(CollectionMismatch, match=r"b\.parquet .*-float16"):
        finished_ids(tmp_path, embedder.fingerprint)
    stored = embedder.replaced(store=tmp_path / "store.sqlite")
    assert load(tmp_path, stored).loaded == 3
    assert np.abs(stored.embed(TEXTS) - embedder.embed(TEXTS)).max() <= 3e-4
    assert stored.store is not None
    assert stored.store.stats().hits == 3
    # A file whose numbers are not what its fingerprints say.
    result = half(table(TEXTS[2]))
    place = result.schema.get_field_index("fingerprint")
    claimed = result.set_column(place, "fingerprint", pa.array([embedder.fingerprint]))
    pq.write_table(claimed, tmp_path / "b.parquet")
    with pytest.raises(CollectionMismatch, match="another space"):
        load(tmp_path, stored)


def test_ids_of_types_that_cannot_be_compared_are_refused(
    tmp_path: Path, embedder: Embedder
) -> None:
    result = job(tmp_path, table(*TEXTS[:2]))
    large = result.set_column(0, "id", pa.array(["2", "3"], pa.large_string()))
    pq.write_table(large, tmp_path / "b.parquet")
    ids = finished_ids(tmp_path, embedder.fingerprint)
    assert (ids.type, ids.to_pylist()) == (pa.large_string(), ["0", "1", "2", "3"])
    numbers = result.set_column(0, "id", pa.array([4, 5]))
    pq.write_table(numbers, tmp_path / "c.parquet")
    with pytest.raises(CollectionMismatch, match=r"string in .*a\.parquet and int64 in .*c\.parq"):
        finished_ids(tmp_path, embedder.fingerprint)


@pytest.mark.parametrize("there", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("here", [pa.string(), pa.dictionary(pa.int64(), pa.string())])
def test_what_is_left_of_a_source(
    tmp_path: Path, embedder: Embedder, here: pa.DataType, there: pa.DataType
) -> None:
    result = job(tmp_path, table(*TEXTS[:2]))
    ids = pa.array(["0", None]).cast(there)
    pq.write_table(result.set_column(0, "id", ids), tmp_path / "a.parquet")
    done = finished_ids(tmp_path, embedder.fingerprint)
    source = pa.table({"id": pa.array(["0", "1", None, None]).cast(here), "row": range(4)})
    # A row without an id is done again, and never left out for another one.
    assert unfinished(source, done, "id")["row"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_the_options_for_writing_change_the_size_and_nothing_else(
    tmp_path: Path, kind: Any
) -> None:
    embed = EmbedBatch("onnx", "bundled", vector_type=kind)
    rows = pa.table({"text": [f"text number {n}" for n in range(300)]})
    result = embed(rows)
    files = pyarrow.dataset.ParquetFileFormat()
    for name, options in (("ours", embed.writing), ("default", {})):
        written = files.make_write_options(**options)
        pyarrow.dataset.write_dataset(
            result, tmp_path / name, format="parquet", file_options=written
        )
    ours, default = (tmp_path / name / "part-0.parquet" for name in ("ours", "default"))
    assert pq.read_table(ours).equals(result)
    assert ours.stat().st_size < 0.9 * default.stat().st_size


def test_a_store_in_8_bits_is_filled_with_what_it_would_have(
    tmp_path: Path, embedder: Embedder
) -> None:
    job(tmp_path / "r", table(*TEXTS))
    computed, loaded = (
        embedder.replaced(store=EmbeddingStore(tmp_path / name, form="int8")) for name in "ab"
    )
    assert load(tmp_path / "r", loaded).loaded == 3
    assert np.array_equal(loaded.embed(TEXTS), computed.embed(TEXTS))
    assert loaded.store is not None
    assert loaded.store.stats().hits == 3


def test_a_half_written_file_is_put_aside(
    tmp_path: Path, embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    job(tmp_path, table(*TEXTS))
    half = (tmp_path / "a.parquet").read_bytes()[:3000]
    (tmp_path / "b.parquet").write_bytes(half)
    with pytest.raises(CollectionDamaged, match=r"b\.parquet is half written"):
        load(tmp_path, embedder.replaced(store=tmp_path / "store.sqlite"))
    assert finished_ids(tmp_path, embedder.fingerprint).to_pylist() == ["0", "1", "2"]
    assert (tmp_path / "_half-written-b.parquet").read_bytes() == half
    assert "half written" in caplog.text


@pytest.mark.parametrize(("kind", "within"), [("float32", 0), ("float16", 3e-4)])
def test_loaded_vectors_are_not_computed_again(
    tmp_path: Path, kind: Any, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = ["Mars", None, "Saturn"]
    batch = table(*TEXTS[:2], None, title=titles)
    computed = job(tmp_path / "r", batch, vector_type=kind, title_column="title")
    stored = Embedder("onnx", "bundled", store=tmp_path / "store.sqlite")
    report = load(tmp_path / "r", stored.replaced(dimensions=128))
    assert (report.loaded, report.without_vector) == (2, {"invalid": 1})
    monkeypatch.setattr(stored.runtime, "embed", None)
    found = stored.embed(TEXTS[:2], titles=titles[:2])
    expected = np.array(computed["vector"].to_pylist()[:2], np.float32)
    assert np.abs(found - expected).max() <= within
    assert stored.replaced(dimensions=128).embed(TEXTS[:1], titles=["Mars"]).shape == (1, 128)


def test_an_index_is_filled_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job(tmp_path / "r", table(*TEXTS))
    stored = Embedder("onnx", "bundled", dimensions=256, store=tmp_path / "store.sqlite")
    load(tmp_path / "r", stored)
    computed: list[str] = []
    embed = stored.runtime.embed

    def counted(texts: Any, **options: Any) -> Any:
        computed.extend(texts)
        return embed(texts, **options)

    monkeypatch.setattr(stored.runtime, "embed", counted)
    with ChromaIndex(tmp_path / "index", "texts", stored) as index:
        report = index.ingest([Passage(text, id=str(n)) for n, text in enumerate(TEXTS)])
    assert report.added == 3
    # The sentence by which models are compared; once more past the store.
    assert len(set(computed)) == 1
    assert not any(text in computed[0] for text in TEXTS)


def test_vectors_that_are_not_the_stores_are_refused(tmp_path: Path, embedder: Embedder) -> None:
    stored = embedder.replaced(store=tmp_path / "store.sqlite")
    with pytest.raises(ConfigurationError, match="store="):
        load(tmp_path, embedder)
    with pytest.raises(ConfigurationError, match="no Parquet file"):
        load(tmp_path / "none", stored)
    job(tmp_path / "split", table(*TEXTS), overlong="split")
    job(tmp_path / "int8", table(*TEXTS), vector_type="int8")
    job(tmp_path / "narrow", table(*TEXTS), dimensions=128)
    for folder, why in (("split", "another space"), ("int8", "int8"), ("narrow", "another space")):
        with pytest.raises(CollectionMismatch, match=why):
            load(tmp_path / folder, stored)
    assert stored.store is not None
    assert stored.store.stats().vectors == 0


@pytest.mark.parametrize("wrong", [np.nan, 0.0, 3.0])
def test_vectors_that_cannot_be_right_are_refused(
    tmp_path: Path, embedder: Embedder, wrong: float
) -> None:
    result = job(tmp_path, table(*TEXTS))
    vectors = vectors_of(result).astype(np.float32)
    vectors[1] *= wrong
    place, field = 2, result.schema.field("vector")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 768)
    pq.write_table(result.set_column(place, field, column), tmp_path / "a.parquet")
    with pytest.raises(CollectionDamaged, match="not finite or not of norm 1"):
        load(tmp_path, embedder.replaced(store=tmp_path / "store.sqlite"))


def test_a_missing_vector_and_a_rewritten_file_are_refused(
    tmp_path: Path, embedder: Embedder
) -> None:
    stored = embedder.replaced(store=tmp_path / "store.sqlite")
    result = job(tmp_path, table(TEXTS[0], None))
    claimed = result.set_column(4, "status", pa.array(["ok", "ok"]))
    pq.write_table(claimed, tmp_path / "a.parquet")
    with pytest.raises(CollectionDamaged, match="missing"):
        load(tmp_path, stored)
    plain = pa.table({name: result[name].to_pylist() for name in result.column_names})
    pq.write_table(plain, tmp_path / "a.parquet")
    with pytest.raises(CollectionDamaged, match="another program has rewritten it"):
        load(tmp_path, stored)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("kind", "leaks"), [("EmbedBatch", False), ("Leaking", True)])
def test_memory_does_not_grow_with_the_rows(kind: str, leaks: bool) -> None:
    program = [sys.executable, growth.__file__, kind]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(program, env=environment, check=True, capture_output=True, text=True)
    # 25 batches of vectors are 315 MB; what waits for the garbage collection was 65.
    assert (int(found.stdout) > 16_000_000) == leaks


def test_the_core_imports_neither_ray_nor_pyarrow() -> None:
    program = (
        "import sys, gemma_embed, gemma_embed.runtimes, gemma_embed.chroma\n"
        "assert not {'ray', 'pyarrow'} & set(sys.modules)\n"
        "import gemma_embed.ray\n"
        "assert 'ray' not in sys.modules and 'pyarrow' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
