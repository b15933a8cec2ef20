"""``gemma-embed export``."""

from __future__ import annotations

import argparse
import sys
from typing import Any, get_args

from gemma_fast.gguf_file import GgufPrecision
from gemma_fast.quantization import Precision


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser("export", help="write a checkpoint in another format")
    formats = parser.add_subparsers(required=True, metavar="FORMAT")
    gguf = formats.add_parser("gguf", help="one file for Ollama, LM Studio and llama.cpp")
    gguf.add_argument("model", metavar="FOLDER", help="a checkpoint; or a hub id on this disk")
    gguf.add_argument("path", metavar="OUT", help="the file, ending in .gguf")
    gguf.add_argument("--precision", choices=get_args(GgufPrecision), default="bf16")
    gguf.set_defaults(run=_gguf)
    onnx = formats.add_parser("onnx", help="one graph for Transformers.js and ONNX Runtime")
    onnx.add_argument("model", metavar="FOLDER", help="a checkpoint; or a hub id on this disk")
    onnx.add_argument("path", metavar="OUT", help="the folder to write")
    onnx.add_argument("--precision", choices=get_args(Precision), default="float32")
    onnx.set_defaults(run=_onnx)


def _gguf(options: argparse.Namespace) -> int:
    from gemma_embed.export import export_gguf

    done = export_gguf(options.model, options.path, precision=options.precision)
    sys.stdout.write(f"{done}\n")
    return 0


def _onnx(options: argparse.Namespace) -> int:
    from gemma_embed.runtimes import OnnxRuntime

    runtime = OnnxRuntime(options.model, precision=options.precision, offline=True)
    graph = runtime.export(options.path)
    sys.stdout.write(f"{graph}, and its numbers beside it\n")
    return 0
