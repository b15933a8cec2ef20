"""The words of Ollama's errors, 0.11 to 0.33, and of llama.cpp behind it."""

from __future__ import annotations

from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes.remote.failures import Dialect

DIALECT = Dialect(
    server="the Ollama server",
    words=(
        (
            "too long",
            r"input (length )?exceeds (the )?(maximum )?context length|cannot be truncated further"
            r"|input after truncation exceeds|input is too large to process",
        ),
        ("not finite", r"NaN or Inf|unsupported value: [+-]?(NaN|Inf)|failed to encode response"),
        # The runner is a process behind the server, which reports its own broken connection to
        # it, or that it ended. The next request starts a new one.
        (
            "crashed",
            r'Post "http://[^"]*": .*(EOF|refused|reset|closed|broken pipe)'
            r"|process no longer running|runner has unexpectedly stopped",
        ),
        # With a memory that does not suffice the next start fails, too.
        ("refused", r"out-of-memory during startup"),
        ("failed", r"unexpected server status|timed out waiting|aborting load|has terminated"),
        ("busy", r"server busy"),
        ("unsupported", r"does not support embeddings"),
        ("refused", r"binary not found|requires a newer version"),
        ("missing", r"model .*not found|file does not exist"),
    ),
    fixes={
        "unreachable": "is it running (`ollama serve`), and is host= or OLLAMA_HOST right?",
        "unknown host": (
            "is host= or OLLAMA_HOST right, and does this machine's name service work?"
        ),
        "timeout": (
            "it may be busy or slow: raise timeout= (load_timeout= while a model loads), or lower "
            "max_batch= and max_batch_bytes="
        ),
        "busy": "try again later, with a lower concurrency=, or raise OLLAMA_MAX_QUEUE there",
        "not finite": ("use another quantisation of the model, or compute on the CPU (num_gpu 0)"),
        "missing": "run: ollama pull {model}",
        "unsupported": f"run: ollama pull {EMBEDDINGGEMMA_300M.ollama_tag}",
        "unknown path": "is host= or OLLAMA_HOST right, its path included?",
    },
)
