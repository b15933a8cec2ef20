"""The model on a server with OpenAI's ``/v1/embeddings``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Never

from gemma_embed.errors import MissingDependency
from gemma_embed.inputs import checked_texts
from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes.options import check_kind, checked_seconds
from gemma_embed.runtimes.remote.address import server_url
from gemma_embed.runtimes.remote.headers import Headers, checked_headers
from gemma_embed.runtimes.remote.runtime import RemoteRuntime, Settings
from gemma_embed.runtimes.unknown_options import reject_unknown

if TYPE_CHECKING:
    from gemma_embed.runtimes.openai.service import OpenAIService


@dataclass(frozen=True, kw_only=True)
class OpenAISettings(Settings):
    """What only such a server has; see ``OpenAIRuntime``."""

    load_timeout: float


class OpenAIRuntime(RemoteRuntime["OpenAIService"]):
    """EmbeddingGemma, or a fine-tune of it, on a server with OpenAI's ``/v1/embeddings``.

    llama-server, LM Studio, vLLM, text-embeddings-inference. Prompts are written here: the server
    must add none. Asks nothing before first use; then it looks at what the server tells of the
    model, and embeds two texts to find the longest text that the server reads, and which weights it
    runs.
    """

    _settings: OpenAISettings

    def __init__(
        self,
        model: str = EMBEDDINGGEMMA_300M.name,
        *,
        host: str = "",
        timeout: float = 300.0,
        load_timeout: float = 300.0,
        headers: Headers | None = None,
        max_batch: int = 64,
        max_batch_bytes: int = 128 * 1024,
        concurrency: int = 2,
        max_retries: int = 3,
        **unknown: Never,
    ) -> None:
        """Check the options; no connection is made.

        Args:
            model: What the server calls the model. One that runs a single model takes any name.
            host: The server's address, with or without ``/v1``; empty for port 8080 of this
                machine, which is llama-server's. Shown as it is: what is secret belongs in
                ``headers``.
            timeout: Seconds to wait for a batch's complete answer.
            load_timeout: Seconds to wait for a server that is still loading the model.
            headers: Sent with every request to this host, and to no other, say
                ``{"Authorization": "Bearer ..."}``: a mapping, or pairs of name and value. Never
                shown. ``OPENAI_API_KEY`` is not used: it would go to any host. Pickles leave values
                out; give ``EnvironmentVariable("A_NAME")`` for runtimes that worker processes
                unpickle.
            max_batch: Most texts in a request.
            max_batch_bytes: Most bytes of text in a request, but for a longer text alone.
            concurrency: Most requests in flight, over all threads.
            max_retries: How often to repeat a request after a failure that may pass.
            unknown: Refused.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        if unknown:
            reject_unknown(unknown, "OpenAIRuntime")
        check_kind("model", model, str)
        check_kind("host", host, str)
        super().__init__(
            OpenAISettings(
                row=EMBEDDINGGEMMA_300M,
                model=model,
                host=server_url(host, server="the server", bare_port=8080).removesuffix("/v1"),
                headers=checked_headers(headers),
                timeout=timeout,
                load_timeout=checked_seconds("load_timeout", load_timeout),
                max_batch=max_batch,
                max_batch_bytes=max_batch_bytes,
                concurrency=concurrency,
                max_retries=max_retries,
            )
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of prompted texts, special tokens included, by llama-server's tokenizer.

        Raises:
            ServerRefused: If the server has no ``/tokenize``, as only llama-server's is known.
            TransientError: If it cannot be reached now.
        """
        from gemma_embed.runtimes.remote.loop import run

        service = self._service.get()
        return [len(run(service.tokenized(text))) for text in checked_texts(texts)]

    def _connect(self) -> OpenAIService:
        try:
            from gemma_embed.runtimes.openai.service import OpenAIService
        except ImportError as error:
            raise MissingDependency(
                f'OpenAIRuntime needs httpx ({error}); run: pip install "gemma-embed[openai]"'
            ) from error
        return OpenAIService(self._settings)
