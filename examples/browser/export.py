"""Prepare a page that searches a folder's notes in the browser: model, vectors, passages, library.

    npm install --ignore-scripts --prefix examples/browser
    python examples/browser/export.py
    python examples/browser/serve.py

Everything the page loads is in one folder, so it needs no other server. The passages are embedded
with the very graph that the page embeds questions with.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from common import NOTES, read_passages, run  # noqa: E402

from gemma_embed import Embedder  # noqa: E402
from gemma_embed.runtimes import OnnxRuntime  # noqa: E402

# Of the npm package: the library, and ONNX Runtime for the web with its loader.
LIBRARY = (
    "@huggingface/transformers/dist/transformers.min.js",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
)
DTYPES = {"float32": "fp32", "int8": "q8", "int4": "q4"}


def main() -> None:
    """Write the folder that ``serve.py`` serves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=NOTES, help="texts to search")
    parser.add_argument("--model", default="bundled", help="folder or hub id")
    parser.add_argument("--precision", choices=DTYPES, default="int8", help="of the model")
    parser.add_argument("--dimensions", type=int, default=256, help="of a vector")
    parser.add_argument("--vectors", choices=["int8", "float32"], default="int8")
    parser.add_argument("--site", type=Path, default=HERE / "site", help="the folder to write")
    options = parser.parse_args()

    copy_page(options.site)
    model = options.site / "model"
    OnnxRuntime(options.model, precision=options.precision).export(model)
    runtime = OnnxRuntime(model, precision=options.precision)
    embedder = Embedder(runtime, dimensions=options.dimensions, overlong="truncate")
    passages = list(read_passages(options.folder))
    vectors = embedder.embed_documents(
        [passage.text for passage in passages], [passage.title for passage in passages]
    )
    scale = 1.0
    if options.vectors == "int8":
        scale = float(np.abs(vectors).max() / 127)
        vectors = np.rint(vectors / scale).astype(np.int8)
    (options.site / "vectors.bin").write_bytes(vectors.tobytes())
    index = {
        "dtype": DTYPES[options.precision],
        # The page writes no prompt of its own: a fine-tune may have another one.
        "prompt": runtime.prompts.prefix("query"),
        "dimensions": embedder.dimensions,
        "vectors": options.vectors,
        "scale": scale,
        "model": runtime.model.name,
        "fingerprint": embedder.fingerprint,
        "passages": [vars(passage) for passage in passages],
    }
    text = json.dumps(index, ensure_ascii=False)
    (options.site / "index.json").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in options.site.rglob("*") if path.is_file())
    print(f"{len(passages)} passages; {options.site} has {size / 1e6:.0f} MB")


def copy_page(site: Path) -> None:
    """Copy the page and the library that npm installed."""
    (site / "lib").mkdir(parents=True, exist_ok=True)
    for name in ("index.html", "search.js"):
        shutil.copyfile(HERE / name, site / name)
    for name in LIBRARY:
        source = HERE / "node_modules" / name
        if not source.is_file():
            sys.exit(f"{source} is missing; run: npm install --ignore-scripts --prefix {HERE}")
        shutil.copyfile(source, site / "lib" / source.name)


if __name__ == "__main__":
    run(main)
