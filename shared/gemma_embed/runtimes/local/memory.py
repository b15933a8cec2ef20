"""A batch that does not fit into memory, computed in parts that do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from gemma_embed.errors import ModelCorrupt, OutOfMemory
from gemma_embed.runtimes.base import Batch
from gemma_embed.vectors import Vectors
from gemma_fast.errors import Damaged

# The words of libraries without an exception of their own for it: torch's CPU allocator, MPS, ONNX
# Runtime, and oneDNN, which says no more than this (measured under a limit of address space). A
# primitive's *descriptor* fails where oneDNN does not compute something at all.
_WORDS = re.compile(
    r"(?:can't|cannot|failed to) allocate memory|smaller than requested bytes"
    r"|out of memory|bad_alloc|could not (?:create|execute) a primitive(?! descriptor)",
    re.IGNORECASE,
)


def within_memory(
    forward: Callable[[Sequence[Sequence[int]]], Vectors],
    lock: AbstractContextManager[object],
    rows: list[int],
    ids: Mapping[int, Sequence[int]],
) -> Iterator[Batch]:
    """Compute a batch, in halves where all of it is too much, down to one text.

    A system that kills the process instead of refusing it memory cannot be helped from inside.

    Args:
        forward: Gives the vectors of token sequences, in their order.
        lock: Taken while it computes, since two batches at once take the memory of both.
        rows: The batch.
        ids: Tokens of each row.

    Yields:
        Rows and their vectors; together every row once, in the order of ``rows``.

    Raises:
        ModelCorrupt: If tokenizer and weights do not belong together.
        OutOfMemory: If one text alone is too much; ``index`` is its row.
    """
    pending = [rows]
    while pending:
        part = pending.pop()
        try:
            with lock:
                vectors = forward([ids[row] for row in part])
        except Damaged as error:
            raise ModelCorrupt(str(error)) from error
        except Exception as error:  # ONNX Runtime's have no other base in common.
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                tokens = len(ids[part[0]])
                raise OutOfMemory(
                    f"a text of {tokens} tokens, computed alone, does not fit into memory; "
                    "free some, use a smaller dtype or precision, or another device, or embed "
                    "shorter texts",
                    index=part[0],
                    tokens=tokens,
                ) from error
        else:
            yield Batch(part, vectors)
            continue
        # Here and not in the handler, whose traceback would keep the tensors alive.
        _free_cached()
        middle = len(part) // 2
        pending += [part[middle:], part[:middle]]


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether this is how Python or a library says that memory does not suffice."""
    return isinstance(error, MemoryError) or _WORDS.search(str(error)) is not None


def _free_cached() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
