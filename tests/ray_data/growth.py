"""Prints how many bytes of its own a process has gained while batches passed through EmbedBatch."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from gemma_embed.ray import EmbedBatch

ROWS, BATCHES, WARM_UP = 4096, 30, 5


class Leaking(EmbedBatch):
    """Keeps what it has computed."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        result = super().__call__(batch)
        self.kept = [*getattr(self, "kept", []), result["vector"]]
        return result


def own() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def grown(embed: EmbedBatch) -> int:
    before = 0
    for number in range(BATCHES):
        # Equal texts are computed once, and each row has its vector: many rows for little work.
        texts: list[str | None] = [f"batch {number} text {row % 32}" for row in range(ROWS)]
        # An exception that is kept keeps what was on the stack.
        texts[7] = None
        embed(pa.table({"id": [f"{number}-{row}" for row in range(ROWS)], "text": texts}))
        if number == WARM_UP - 1:
            before = own()
    return own() - before


if __name__ == "__main__":
    kind = {"EmbedBatch": EmbedBatch, "Leaking": Leaking}[sys.argv[1]]
    sys.stdout.write(str(grown(kind("onnx", "bundled"))))
