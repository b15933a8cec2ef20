"""A batch that does not fit into memory, computed in parts that do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from gemma_embed.errors import OutOfMemory
from gemma_embed.vectors import Vectors

# How libraries say it that have no exception of their own for it: torch's CPU allocator, MPS, ONNX
# Runtime, and oneDNN, which says no more than this (measured under a limit of address space). Of a
# primitive's descriptor it says so where it does not compute something at all.
_WORDS = re.compile(
    r"(?:can't|cannot|failed to) allocate memory|smaller than requested bytes"
    r"|out of memory|bad_alloc|could not (?:create|execute) a primitive(?! descriptor)",
    re.IGNORECASE,
)


def within_memory(
    compute: Callable[[list[int]], Vectors],
    rows: list[int],
    sizes: Mapping[int, int] | Sequence[int],
) -> Iterator[tuple[list[int], Vectors]]:
    """Compute a batch, in halves where the whole is too much, down to one text.

    A system that kills the process instead of refusing it memory cannot be helped from inside.

    Args:
        compute: Gives the vectors of some of the rows, in their order.
        rows: The batch.
        sizes: Tokens of each row.

    Yields:
        Rows and their vectors; together every row once, in the order of ``rows``.

    Raises:
        OutOfMemory: If one text alone is too much; ``index`` is its row.
    """
    pending = [rows]
    while pending:
        part = pending.pop()
        try:
            vectors = compute(part)
        except Exception as error:  # ONNX Runtime's have no other base in common.
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise OutOfMemory(
                    f"a text of {sizes[part[0]]} tokens, computed alone, does not fit into memory; "
                    "free some, use a smaller dtype or precision, or another device, or embed "
                    "shorter texts",
                    index=part[0],
                    tokens=sizes[part[0]],
                ) from error
        else:
            yield part, vectors
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
