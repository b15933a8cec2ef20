"""Jobs on a Ray cluster of this machine: two workers, and whatever can go wrong."""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ray = pytest.importorskip("ray", reason='needs Ray Data: pip install "gemma-embed[ray]"')

import workers  # noqa: E402

from gemma_embed import Embedder  # noqa: E402
from gemma_embed.errors import (  # noqa: E402
    ConfigurationError,
    ConnectionFailed,
    ModelChanged,
    ModelNotFound,
)
from gemma_embed.ray import EmbedBatch, missing  # noqa: E402

# Of things inside Ray: its own deprecated settings, files and sockets of its processes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

POISON: dict[int, str | None] = {11: None, 40: "word " * 3000}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("events")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Not the one in the home folder.
        (folder / "token").write_text(secrets.token_hex(32))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        patch.setenv(workers.FOLDER, str(folder))
        workers.start(ray, folder)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield folder
        ray.shutdown()


@pytest.fixture
def events(cluster: Path) -> Path:
    """The folder where workers write down what happens, empty."""
    for path in cluster.iterdir():
        if path.name != "token":
            path.unlink()
    return cluster


@pytest.fixture(autouse=True)
def _earlier_workers_have_ended() -> None:
    """A failed job's exception keeps its workers and their processors; pytest keeps it a while."""
    gc.collect()


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder("onnx", "bundled")


def text_of(number: int) -> str | None:
    return POISON.get(number, f"number {number} of the things about topic {number % 17}")


def written(folder: Path, count: int = 400, files: int = 2) -> Path:
    """Write the source, not in the order of the ids."""
    folder.mkdir()
    order = np.random.default_rng(5).permutation(count).tolist()
    for file in range(files):
        numbers = order[file::files]
        table = pa.table({"id": [str(n) for n in numbers], "text": [text_of(n) for n in numbers]})
        pq.write_table(table, folder / f"{file}.parquet")
    return folder


def rows(folder: Path) -> dict[str, Any]:
    found = pq.read_table(folder).to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def computed(events: Path) -> list[str]:
    return [line for path in events.glob("computed-*") for line in path.read_text().split()]


def few(count: int = 20) -> Any:
    return ray.data.from_items([{"id": str(n), "text": f"thing {n}"} for n in range(count)])


def test_two_workers_compute_what_one_process_does_whatever_happens_to_them(
    events: Path, embedder: Embedder, tmp_path: Path
) -> None:
    source = written(tmp_path / "source")
    embed = workers.Unlucky("onnx", "bundled")
    dataset = embed.over(ray.data.read_parquet(str(source)), workers=2, batch_size=32)
    dataset.write_parquet(str(tmp_path / "target"), **embed.writing)
    assert (events / "killed-0").exists()
    assert (events / "away-0").exists()
    found = rows(tmp_path / "target")
    assert found.keys() == {str(number) for number in range(400)}
    assert {row["fingerprint"] for row in found.values()} == {embedder.fingerprint}
    assert found["11"]["status"] == "invalid"
    assert found["40"]["status"] == "too_long"
    assert "word" not in found["40"]["error"]
    assert {found[str(number)]["vector"] for number in POISON} == {None}
    good = [number for number in range(400) if number not in POISON]
    alone = embedder.embed([str(text_of(number)) for number in good])
    vectors = np.array([found[str(number)]["vector"] for number in good], np.float32)
    assert np.abs(vectors - alone).max() <= 1e-5
    # Two, and the one that took the killed one's place.
    assert len(list(events.glob("computed-*"))) == 3, "one worker did everything"
    # Each row once, but those that the killed one had before it.
    again = [each for each, times in Counter(computed(events)).items() if times > 1]
    assert len(again) <= 32

    left = missing(ray.data.read_parquet(str(source)), tmp_path / "target", embed.fingerprint)
    assert left.count() == 0


def test_a_batch_that_kills_every_worker_ends_the_job(events: Path) -> None:
    embed = workers.AlwaysKilled("onnx", "bundled")
    with pytest.raises(ray.exceptions.RayActorError):
        embed.over(few(), batch_size=10).materialize()
    assert len(list(events.glob("died-*"))) == 3


def test_a_server_that_stays_away_ends_the_job_with_this_packages_error(events: Path) -> None:
    with pytest.raises(ConnectionFailed, match="no connection to the server"):
        workers.NeverReachable("onnx", "bundled").over(few()).materialize()
    assert len(list(events.glob("away-*"))) == 3


def test_a_worker_with_another_model_takes_no_part(cluster: Path) -> None:
    with pytest.raises(ModelChanged, match="0123"):
        EmbedBatch("onnx", "bundled", fingerprint="0123").over(few()).materialize()


def test_workers_compute_with_their_processors(cluster: Path) -> None:
    dataset = workers.Threads("onnx", "bundled").over(few(), cpus=2)
    assert {row["threads"] for row in dataset.take_all()} == {2}


def test_options_that_cannot_work_are_found_out_before_any_worker(cluster: Path) -> None:
    with pytest.raises(ModelNotFound):
        EmbedBatch("onnx", "/no/such/folder").over(few())
    with pytest.raises(ConfigurationError, match="text_column='body': the columns are 'id', 'text"):
        EmbedBatch("onnx", "bundled", text_column="body").over(few())
    with pytest.raises(ConfigurationError, match="workers=0"):
        EmbedBatch("onnx", "bundled").over(few(), workers=0)


def test_after_the_program_is_killed_only_the_missing_is_computed(
    events: Path, tmp_path: Path
) -> None:
    source, target = written(tmp_path / "source", 1600, 8), tmp_path / "target"
    program = [sys.executable, workers.__file__, str(source), str(target)]
    process = subprocess.Popen(
        program,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while len(list(target.glob("*.parquet"))) < 4:
            assert process.poll() is None, "the job ended before it was killed"
            assert time.monotonic() < end, "the job wrote nothing"
            time.sleep(0.05)
    finally:
        others = psutil.Process(process.pid).children(recursive=True)
        agents = [each for each in others if each.name().endswith("Agent")]
        process.kill()
        process.wait()
        # Ray ends its workers by itself; what they are doing at that moment may still be written.
        _, left_over = psutil.wait_procs([each for each in others if each not in agents], 30)
        for each in (*agents, *left_over):
            with suppress(psutil.NoSuchProcess):
                each.kill()
    assert not left_over
    # What a writer leaves that is killed while it writes.
    (target / "zz.parquet").write_bytes(next(target.glob("*.parquet")).read_bytes()[:5000])
    for path in events.glob("computed-*"):
        path.unlink()

    embed = workers.Counting("onnx", "bundled")
    rest = missing(ray.data.read_parquet(str(source)), target, embed.fingerprint).materialize()
    left = rest.count()
    assert 0 < left <= 1600 - 4 * 32
    assert (target / "_half-written-zz.parquet").exists()
    embed.over(rest, workers=2, batch_size=128).write_parquet(str(target), **embed.writing)
    assert len(computed(events)) == left
    assert rows(target).keys() == {str(number) for number in range(1600)}
