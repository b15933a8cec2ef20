"""The words of llama-server's errors, and of vLLM's and text-embeddings-inference's."""

from __future__ import annotations

from gemma_embed.runtimes.remote.failures import Dialect, Kind

DIALECT = Dialect(
    server="the server",
    words=(
        # llama-server gives the first with 500 or 400, by version.
        (
            Kind.TOO_LONG,
            r"too large to process|exceed_context_size_error|maximum context length"
            r"|must have less than \d+ tokens",
        ),
        (Kind.LOADING, r"^Loading model"),
        (Kind.FAILED, r"^Compute error|^Context size has been exceeded"),
        (Kind.DENIED, r"invalid api key"),
        (Kind.UNSUPPORTED, r"does not support embeddings|not OAI compatible"),
        (Kind.MISSING, r"model .*(does not exist|not found)"),
        (Kind.UNKNOWN_PATH, r"^File Not Found"),
        # By version with 500, which would be repeated.
        (
            Kind.REFUSED,
            r"json\.exception|\"(prompt|input|content)\"|invalid tokens|format to return"
            r"|does not support logits",
        ),
    ),
    fixes={
        Kind.UNREACHABLE: "is it running, and is host= right?",
        Kind.TOO_LONG: "start llama-server with -ub 2048, or shorten or split the text",
        Kind.MISSING: "give the name that GET /v1/models lists as model=",
        Kind.UNSUPPORTED: "start llama-server with --embeddings and without --pooling",
    },
)
