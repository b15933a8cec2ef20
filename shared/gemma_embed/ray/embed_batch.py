"""A class for the workers of Ray Data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, get_args

import numpy as np
import pyarrow as pa

from gemma_embed.embedder import Embedder
from gemma_embed.errors import (
    ConfigurationError,
    EmbeddingError,
    MissingDependency,
    ModelChanged,
    TransientError,
)
from gemma_embed.long_texts import Overlong
from gemma_embed.one_text import TextFaults
from gemma_embed.parquet.columns import VectorType, embedded_columns, space_name, writing
from gemma_embed.prompts import Task
from gemma_embed.ray.columns import check_columns, failure, results, texts_of
from gemma_embed.runtimes import RuntimeName, open_runtime, reject_unknown
from gemma_embed.runtimes.named import RUNTIMES
from gemma_embed.runtimes.options import check_choice, check_kind, checked_count
from gemma_embed.runtimes.unknown_options import options_of

if TYPE_CHECKING:
    from ray.data import Dataset

# Ray's own number is without end, and a batch that kills its process would be tried for ever.
_MOST_TRIES = 3


class EmbedBatch:
    """Embeds the texts of an Arrow table, for ``Dataset.map_batches(batch_format="pyarrow")``.

    The table comes back with four columns more:

    - ``vector``: a fixed-size list of numbers; null for a row that cannot be embedded.
    - ``fingerprint``: of the vector space, as ``EmbedBatch.fingerprint``.
    - ``status``: ``ok``; ``too_long`` or ``invalid`` for a text that can never be embedded;
      ``failed`` for one that the runtime broke down on, or that did not fit into memory.
    - ``error``: for those, what is wrong and what to do. Never the text.

    Such a row does not stop the others. What is no one text's fault is raised: a server that
    cannot be reached, options that cannot work.

    Its arguments are plain values, since Ray makes an object of it in every worker. The model is
    loaded with the first batch, not before: the program that starts the job makes an object too,
    which checks the options and knows the fingerprint, and Ray reports an error of a constructor
    in a worker as the death of that worker.

    Example:
        ```python
        embed = EmbedBatch("onnx", "bundled")
        dataset = missing(ray.data.read_parquet("texts"), "vectors", embed.fingerprint)
        embed.over(dataset, workers=2).write_parquet("vectors", **embed.writing)
        ```
    """

    def __init__(
        self,
        runtime: RuntimeName | Mapping[str, Any] = "transformers",
        model: str | None = None,
        *,
        dimensions: int | None = None,
        task: Task | str = "document",
        overlong: Overlong = "error",
        text_column: str = "text",
        title_column: str | None = None,
        vector_type: VectorType = "float32",
        fingerprint: str | None = None,
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            runtime: A runtime's name; or, for options of its own, what ``runtime_settings`` returns
                of one: ``{"runtime": "onnx", "precision": "int8"}``. A runtime that has ``threads``
                gets as many as Ray gives the worker processors, unless they are stated.
            model: What a runtime given by name loads. A folder must be there on every machine.
            dimensions: One of the model's widths; None for the full one, which ``load`` needs.
            task: Whose prompt comes before every text.
            overlong: As for ``Embedder``.
            text_column: The column of texts.
            title_column: The column of titles, each a text or null; None for none.
            vector_type: Of the numbers. ``float16`` halves the file, and rounds each number by at
                most 0.0003; ``int8`` as ``gemma_embed.compact`` makes it.
            fingerprint: The one that every worker must find, so that no machine takes part with
                other weights; ``over`` states it.
            **unknown: Refused.

        Raises:
            ConfigurationError: If an option has a value that cannot work, or is unknown.
        """
        if unknown:
            reject_unknown(unknown, "EmbedBatch", EmbedBatch)
        if isinstance(runtime, str):
            runtime = (
                {"runtime": runtime} if model is None else {"runtime": runtime, "model": model}
            )
        elif not isinstance(runtime, Mapping):
            raise ConfigurationError(
                f"runtime is a {type(runtime).__name__}, and workers make their own: pass its "
                "name, or runtime_settings(runtime) from gemma_embed.runtimes"
            )
        elif model is not None:
            raise ConfigurationError(f"model={model!r}: state it in the runtime's settings")
        check_kind("text_column", text_column, str)
        check_kind("title_column", title_column, str, None)
        check_choice("vector_type", vector_type, get_args(VectorType))
        check_kind("fingerprint", fingerprint, str, None)
        self._runtime = dict(runtime)
        self._options: dict[str, Any] = {
            "dimensions": dimensions,
            "document_task": task,
            "overlong": overlong,
        }
        self._columns: dict[str, Any] = {"text_column": text_column, "title_column": title_column}
        self._vector_type, self._expected = vector_type, fingerprint
        self._embedder = Embedder(open_runtime(self._runtime), **self._options)
        self._is_ready = False
        if title_column is not None and self._embedder.document_task != "document":
            raise ConfigurationError(f"task={task!r} has no titles: leave title_column out")

    @property
    def fingerprint(self) -> str:
        """What the column says: ``Embedder.fingerprint``, and the type of numbers if not float32.

        Raises:
            EmbeddingError: If the model is missing, or is not the one that it should be.
        """
        return space_name(self._embedder.fingerprint, self._vector_type)

    @property
    def writing(self) -> dict[str, Any]:
        """Options for ``write_parquet``; with its own, files are larger and take longer."""
        return writing(self._vector_type)

    def over(
        self,
        dataset: Dataset,
        *,
        workers: int | tuple[int, int] = 1,
        cpus: int = 1,
        gpus: float = 0,
        batch_size: int = 1024,
    ) -> Dataset:
        """Return a dataset with the four columns more, computed by a pool of workers.

        A batch is the unit of work: a file at most, and what a killed worker computes again. A
        batch whose worker dies three times ends the job, instead of trying for ever, and so do
        errors that the class says are raised; they are then of this package's classes, and a
        ``TransientError`` is tried three times.
        The settings for that are made in the dataset's own ``context``.

        Reading and writing need processors besides: with ``workers * cpus`` of a machine's logical
        processors taken, Ray waits for ever. On one machine start it with one more than it has.

        Args:
            dataset: With the columns of texts and titles; others are passed on.
            workers: How many; or the fewest and the most.
            cpus: Processors of each, and its threads.
            gpus: GPUs of each.
            batch_size: Rows to a batch.

        Raises:
            ConfigurationError: If a number cannot work.
            EmbeddingError: If the model is missing, or is not the one that it should be.
        """
        try:
            from ray.data import ActorPoolStrategy
        except ImportError as error:
            raise MissingDependency(
                'over() needs Ray Data; run: pip install "gemma-embed[ray]"'
            ) from error

        least, most = workers if isinstance(workers, tuple) else (workers, workers)
        checked_count("workers", least, 1)
        checked_count("workers", most, least)
        checked_count("cpus", cpus, 1)
        checked_count("batch_size", batch_size, 1)
        # Found out here where it can be: an error in a worker comes in a long trace of Ray's.
        if columns := dataset.columns(fetch_if_missing=False):
            check_columns(self._columns, columns)
        arguments = {
            "runtime": self._runtime,
            "dimensions": self._options["dimensions"],
            "task": self._options["document_task"],
            "overlong": self._options["overlong"],
            **self._columns,
            "vector_type": self._vector_type,
            "fingerprint": self._expected or self.fingerprint,
        }
        parts = dataset.repartition(target_num_rows_per_block=batch_size)
        # Otherwise every error is Ray's own UserCodeException, and none is tried again.
        parts.context.raise_original_map_exception = True
        parts.context.actor_task_retry_on_errors = [TransientError]
        with warnings.catch_warnings():
            # max_task_retries: up to 2.63 Ray has no other way to say it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return parts.map_batches(
                type(self),
                batch_format="pyarrow",
                batch_size=batch_size,
                compute=ActorPoolStrategy(min_size=least, max_size=most),
                fn_constructor_kwargs=arguments,
                num_cpus=cpus,
                num_gpus=gpus,
                udf_modifying_row_count=False,
                max_task_retries=_MOST_TRIES - 1,
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed a table's texts.

        Args:
            batch: With the columns of texts and titles; others are passed on.

        Returns:
            The table with four columns more; see the class.

        Raises:
            ConfigurationError: If it is no Arrow table, lacks a column, has one of the four
                already, or its texts are numbers or the like.
            ModelChanged: If the model here has another fingerprint than the job's.
            EmbeddingError: What is no one text's fault.
        """
        if not isinstance(batch, pa.Table):
            raise ConfigurationError(
                f"a batch is {type(batch).__name__}, not an Arrow table: call map_batches with "
                'batch_format="pyarrow", or use over()'
            )
        check_columns(self._columns, batch.column_names)
        self._get_ready()
        texts = texts_of(batch[self._columns["text_column"]])
        title_column = self._columns["title_column"]
        titles = None if title_column is None else texts_of(batch[title_column])
        vectors = np.zeros((len(texts), self._embedder.dimensions), np.float32)
        failures: dict[int, tuple[str, str]] = {}
        faults = TextFaults()
        # A list, not a recursion: a function that calls itself is a reference cycle, and would keep
        # each batch's vectors until the next garbage collection. So would a kept exception.
        parts: list[Sequence[int]] = [range(len(texts))]
        while parts:
            rows = parts.pop()
            if not rows:
                continue
            try:
                vectors[rows] = self._embedder.embed(
                    [texts[row] for row in rows],
                    titles=None if titles is None else [titles[row] for row in rows],
                )
            except EmbeddingError as error:
                if not faults.excuses(error):
                    raise
                row = rows[error.index or 0]
                failures[row] = failure(error)
                rest = [each for each in rows if each != row]
                # In halves, so that a batch of such texts only is not read once for each.
                parts += [rest[len(rest) // 2 :], rest[: len(rest) // 2]]
        added = results(
            vectors,
            failures,
            fingerprint=self.fingerprint,
            vector_type=self._vector_type,
            made_of=embedded_columns(**self._columns),
        )
        for name, values in added.items():
            batch = batch.append_column(name, values)
        return batch

    def _get_ready(self) -> None:
        if self._is_ready:
            return
        threads = _processors()
        takes_threads = "threads" in options_of(RUNTIMES[self._runtime["runtime"]])
        if threads and takes_threads and self._runtime.get("threads") is None:
            runtime = open_runtime({**self._runtime, "threads": threads})
            self._embedder = Embedder(runtime, **self._options)
        if self._expected not in (None, self.fingerprint):
            raise ModelChanged(
                f"the model here has the fingerprint {self.fingerprint}, the job's is "
                f"{self._expected}: there are other weights under the same name on this machine, "
                "or other versions of packages"
            )
        self._is_ready = True


def _processors() -> int | None:
    """Return the processors that Ray gave this worker; None outside of one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))
