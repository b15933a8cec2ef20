"""What happens to workers and to the program of a job, once each."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa

from gemma_embed.errors import ConnectionFailed
from gemma_embed.ray import EmbedBatch, missing

FOLDER = "GEMMA_EMBED_TEST_FOLDER"


def start(ray: object, folder: Path) -> None:
    """Start Ray on this machine: two workers, and a processor for reading and writing."""
    ray.init(  # type: ignore[attr-defined]
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=150_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {FOLDER: str(folder)}},
        # Processes take longer to start than the jobs here take.
        _system_config={"idle_worker_killing_time_threshold_ms": 120_000},
    )


def happens(name: str, times: int = 1) -> bool:
    """Whether something happens now; so many times in all processes together."""
    for number in range(times):
        try:
            Path(os.environ[FOLDER], f"{name}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


class Counting(EmbedBatch):
    """Writes down the ids that are computed."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        result = super().__call__(batch)
        with Path(os.environ[FOLDER], f"computed-{os.getpid()}").open("a") as file:
            file.writelines(f"{each}\n" for each in batch["id"].to_pylist())
        return result


class Slow(Counting):
    """Leaves time to kill the program of the job."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        time.sleep(0.3)
        return super().__call__(batch)


class Unlucky(Counting):
    """A worker is killed in its third batch; a server is away when it is needed first."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        if happens("away"):
            raise ConnectionFailed("no connection to the server")
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3 and happens("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


class AlwaysKilled(EmbedBatch):
    """Dies of one batch, whoever gets it."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        if "7" in batch["id"].to_pylist():
            happens("died", 100)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


class NeverReachable(EmbedBatch):
    """A server that stays away."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        happens("away", 100)
        raise ConnectionFailed("no connection to the server")


class Threads(EmbedBatch):
    """Reports how many threads compute."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        result = super().__call__(batch)
        threads = self._embedder.runtime.settings["threads"]
        return result.append_column("threads", pa.array([threads] * len(result)))


def job(source: str, target: str) -> None:
    """Run the job that the test kills."""
    import ray

    start(ray, Path(os.environ[FOLDER]))
    embed = Slow("onnx", "bundled")
    dataset = missing(ray.data.read_parquet(source), target, embed.fingerprint)
    embed.over(dataset, workers=2, batch_size=32).write_parquet(target, **embed.writing)


if __name__ == "__main__":
    job(*sys.argv[1:])
