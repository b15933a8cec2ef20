"""Embedding with Ray Data, on all cores of one machine or of many.

Ray starts the workers, feeds them and starts lost ones again. What is added here is a class for
``Dataset.map_batches``. Without Ray it is a function from one Arrow table to another, which other
engines can call too.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never, get_args

import numpy as np

from gemma_embed.compact import packed
from gemma_embed.embedder import Embedder
from gemma_embed.errors import (
    ConfigurationError,
    EmbeddingError,
    InputTooLong,
    InvalidInput,
    MissingDependency,
    ModelChanged,
    TransientError,
)
from gemma_embed.long_texts import Overlong
from gemma_embed.one_text import TextFaults
from gemma_embed.parquet import (
    ERROR,
    FAILED,
    FINGERPRINT,
    INVALID,
    OK,
    STATUS,
    TOO_LONG,
    VECTOR,
    embedded_columns,
    finished_ids,
)
from gemma_embed.prompts import Task
from gemma_embed.runtimes import RuntimeName, open_runtime, reject_unknown
from gemma_embed.runtimes.named import RUNTIMES
from gemma_embed.runtimes.options import check_choice, check_kind, checked_count
from gemma_embed.runtimes.unknown_options import options_of
from gemma_embed.vectors import Vectors

try:
    import pyarrow as pa
    import pyarrow.compute as pc
except ImportError as error:
    raise MissingDependency(
        'EmbedBatch needs pyarrow; run: pip install "gemma-embed[ray]"'
    ) from error

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.data import Dataset

VectorType = Literal["float32", "float16", "int8"]

_ADDED = (VECTOR, FINGERPRINT, STATUS, ERROR)
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
        embed.over(dataset, workers=2).write_parquet("vectors")
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
        """Name of the vector space: ``Embedder.fingerprint``, and ``-int8`` after that of codes.

        Raises:
            EmbeddingError: If the model is missing, or is not the one that it should be.
        """
        own = self._embedder.fingerprint
        # Nobody can compare codes with vectors, so that one folder must not have both.
        return f"{own}-int8" if self._vector_type == "int8" else own

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
            self._check_columns(columns)
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
        self._check(batch)
        self._get_ready()
        texts = _texts(batch[self._columns["text_column"]])
        title_column = self._columns["title_column"]
        titles = None if title_column is None else _texts(batch[title_column])
        vectors = np.zeros((len(texts), self._embedder.dimensions), np.float32)
        failures: dict[int, EmbeddingError] = {}
        faults = TextFaults()

        def embed(rows: Sequence[int]) -> None:
            if not rows:
                return
            try:
                vectors[rows] = self._embedder.embed(
                    [texts[row] for row in rows],
                    titles=None if titles is None else [titles[row] for row in rows],
                )
            except EmbeddingError as error:
                if not faults.excuses(error):
                    raise
                row = rows[error.index or 0]
                failures[row] = error
                rest = [each for each in rows if each != row]
                # In halves, so that a batch of such texts only is not read once for each.
                embed(rest[: len(rest) // 2])
                embed(rest[len(rest) // 2 :])

        embed(range(len(texts)))
        return self._with_columns(batch, vectors, failures)

    def _check(self, batch: Any) -> None:
        if not isinstance(batch, pa.Table):
            raise ConfigurationError(
                f"a batch is {type(batch).__name__}, not an Arrow table: call map_batches with "
                'batch_format="pyarrow", or use over()'
            )
        self._check_columns(batch.column_names)

    def _check_columns(self, there: Sequence[str]) -> None:
        for option, name in self._columns.items():
            if name is not None and name not in there:
                raise ConfigurationError(
                    f"{option}={name!r}: the columns are {', '.join(map(repr, there))}"
                )
        for name in _ADDED:
            if name in there:
                raise ConfigurationError(
                    f"there is a column {name!r} already, as one of the results: rename or drop it"
                )

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

    def _with_columns(
        self, batch: pa.Table, vectors: Vectors, failures: Mapping[int, EmbeddingError]
    ) -> pa.Table:
        count, width = vectors.shape
        fine = np.ones(count, np.bool_)
        fine[list(failures)] = False
        if self._vector_type == "int8":
            numbers = np.zeros((count, width), np.int8)
            numbers[fine] = packed(vectors[fine], "int8")
        else:
            numbers = vectors.astype(self._vector_type)
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(numbers.reshape(-1)), width, mask=pa.array(~fine)
        )
        # What was embedded, for ``load``: a fingerprint does not say it.
        field = pa.field(VECTOR, column.type, metadata=embedded_columns(**self._columns))
        errors = [failures.get(row) for row in range(count)]
        added = {
            field: column,
            FINGERPRINT: pa.array([self.fingerprint] * count, pa.string()),
            STATUS: pa.array([_status(error) for error in errors], pa.string()),
            ERROR: pa.array([error and str(error.args[0]) for error in errors], pa.string()),
        }
        for name, values in added.items():
            batch = batch.append_column(name, values)
        return batch


def missing(
    dataset: Dataset, folder: str | Path, fingerprint: str, *, id_column: str = "id"
) -> Dataset:
    """Return the rows that a job has still to embed: those whose ids are not in its results.

    Args:
        dataset: The source; each id once.
        folder: The results of earlier runs; see ``finished_ids``, which reads them now.
        fingerprint: Of the job: ``EmbedBatch.fingerprint``.
        id_column: The column of ids, here and there. An id names one text.

    Raises:
        CollectionMismatch: If a result has another fingerprint.
        CollectionDamaged: If a file lacks a column.
    """
    import ray

    done = finished_ids(folder, fingerprint, id_column=id_column)
    if not len(done):
        return dataset
    # Once in the memory that all workers of a machine share.
    arguments = {"done": ray.put(done), "id_column": id_column}
    return dataset.map_batches(
        _without, batch_format="pyarrow", batch_size=None, fn_kwargs=arguments
    )


def _without(batch: pa.Table, done: ObjectRef, id_column: str) -> pa.Table:
    import ray

    ids = batch[id_column]
    there = pc.is_in(ids, value_set=ray.get(done).cast(ids.type))
    return batch.filter(pc.invert(there))


def _texts(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values as Python's; what is not valid UTF-8 has lone surrogates."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    # Ray has a type of its own for Python objects of several kinds.
    if not texts and not pa.types.is_null(kind) and not isinstance(kind, pa.BaseExtensionType):
        raise ConfigurationError(f"a column of texts or titles has {kind}: name another column")
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
        values = [each if each is None else each.decode(errors="surrogateescape") for each in raw]
    return values


def _status(error: EmbeddingError | None) -> str:
    if error is None:
        return OK
    if isinstance(error, InputTooLong):
        return TOO_LONG
    return INVALID if isinstance(error, InvalidInput) else FAILED


def _processors() -> int | None:
    """Return the processors that Ray gave this worker; None outside of one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))
