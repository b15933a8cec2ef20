"""Sentences of documentation that anyone can download, as real text in number.

None of it is part of this project. From the paragraphs, list items and definitions of the English
pages in Debian's packages of documentation.

Run: apt-get download python3.11-doc postgresql-doc-15 git-doc debian-handbook gnome-user-docs \
         sqlite3-doc apache2-doc debian-reference-en developers-reference nginx-doc \
         installation-guide-amd64
     python benchmarks/documentation.py PACKAGES MODEL OUTPUT     PACKAGES holds these .deb files

Writes ``texts.json``, ``queries.npy`` and ``documents.npy``: sentences in random order, of which
the first 500 are embedded as queries and the others as documents, by ``OnnxRuntime`` with
``precision="int8"``, until there are enough or the time is over.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lxml import html

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime

QUERIES = 500
SHORTEST, LONGEST = 40, 180
_BLOCKS = "//*[local-name()='p' or local-name()='li' or local-name()='dd']"
_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")


def sentences(packages: Path) -> list[str]:
    """Return the distinct sentences of the packages' pages, sorted.

    Args:
        packages: A folder of ``.deb`` files.
    """
    found: set[str] = set()
    for package in sorted(packages.glob("*.deb")):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
            for path in sorted(Path(folder).rglob("*")):
                if re.search(r"\.(x?html?(\.en)?|page)$", path.name) and path.is_file():
                    found.update(_sentences(path))
    return sorted(found)


def _sentences(path: Path) -> Iterator[str]:
    page = path.read_bytes()
    if not page.strip():
        return
    for block in html.document_fromstring(page, html.HTMLParser(encoding="utf-8")).xpath(_BLOCKS):
        for sentence in _END.split(" ".join(block.text_content().split())):
            whole = sentence.isascii() and sentence[:1].isupper() and sentence[-1] in ".?!"
            # Almost no sentence of another language has the word.
            if whole and SHORTEST <= len(sentence) <= LONGEST and " the " in sentence.lower():
                yield sentence


def main() -> None:
    """Write the vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    texts = sentences(args.packages)
    random.Random(1).shuffle(texts)
    args.output.mkdir(parents=True, exist_ok=True)
    embedder = Embedder(OnnxRuntime(args.model, precision="int8", threads=args.threads))
    np.save(args.output / "queries.npy", embedder.embed(texts[:QUERIES], task="query"))
    began, parts = time.monotonic(), []
    for start in range(QUERIES, min(len(texts), QUERIES + args.vectors), 1000):
        parts.append(embedder.embed(texts[start : start + 1000]))
        if time.monotonic() - began > 60 * args.minutes:
            break
    documents = np.concatenate(parts)[: args.vectors]
    np.save(args.output / "documents.npy", documents)
    (args.output / "texts.json").write_text(json.dumps(texts[: QUERIES + len(documents)]))
    print(f"{len(texts)} sentences, {len(documents)} vectors, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
