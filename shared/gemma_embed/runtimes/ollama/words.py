"""The words of Ollama's errors, 0.11 to 0.33, and of llama.cpp behind it."""

from __future__ import annotations

from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes.remote.failures import Dialect, Kind

DIALECT = Dialect(
    server="the Ollama server",
    words=(
        (
            Kind.TOO_LONG,
            r"input (length )?exceeds (the )?(maximum )?context length|cannot be truncated further"
            r"|input after truncation exceeds|input is too large to process",
        ),
        (
            Kind.NOT_FINITE,
            r"NaN or Inf|unsupported value: [+-]?(NaN|Inf)|failed to encode response",
        ),
        # The runner is a process behind the server, which reports its own broken connection to
        # it, or that it ended. The next request starts a new one.
        (
            Kind.CRASHED,
            r'Post "http://[^"]*": .*(EOF|refused|reset|closed|broken pipe)'
            r"|process no longer running|runner has unexpectedly stopped",
        ),
        # With a memory that does not suffice the next start fails, too.
        (Kind.REFUSED, r"out-of-memory during startup"),
        (Kind.NOT_STARTED, r"aborting load|has terminated"),
        (Kind.FAILED, r"unexpected server status|timed out waiting"),
        (Kind.BUSY, r"server busy"),
        (Kind.UNSUPPORTED, r"does not support embeddings"),
        (Kind.REFUSED, r"binary not found|requires a newer version"),
        (Kind.MISSING, r"model .*not found|file does not exist"),
    ),
    fixes={
        Kind.UNREACHABLE: "is it running (`ollama serve`), and is host= or OLLAMA_HOST right?",
        Kind.UNKNOWN_HOST: (
            "is host= or OLLAMA_HOST right, and does this machine's name service work?"
        ),
        Kind.BUSY: "try again later, with a lower concurrency=, or raise OLLAMA_MAX_QUEUE there",
        Kind.NOT_FINITE: "use another quantisation of the model, or compute on the CPU (num_gpu 0)",
        Kind.MISSING: "run: ollama pull {model}",
        Kind.UNSUPPORTED: f"run: ollama pull {EMBEDDINGGEMMA_300M.ollama_tag}",
        Kind.UNKNOWN_PATH: "is host= or OLLAMA_HOST right, its path included?",
    },
)
