"""For test suites of applications: vectors that mean something, offline, in a second.

The bundled model is EmbeddingGemma's architecture with EmbeddingGemma's prompts and widths, and is
loaded by the same code, so a test that finds the right passage with it exercises the whole path.
Its vectors are its own; compare them with no other model's.

Example:
    ```python
    import pytest
    from gemma_embed.testing import bundled_runtime
    from langchain_gemma_embed import GemmaEmbeddings


    @pytest.fixture(scope="session")
    def embeddings() -> GemmaEmbeddings:
        return GemmaEmbeddings(bundled_runtime())
    ```
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime


@cache
def bundled_runtime(
    runtime: Literal["onnx", "transformers"] = "onnx",
) -> OnnxRuntime | TransformersRuntime:
    """Return a runtime of the bundled model on the CPU, one for the whole process.

    Args:
        runtime: ``onnx`` needs ``gemma-embed[onnx]`` and no torch; ``transformers`` is for suites
            of applications that use that one. Their vectors are equal to 1e-5.
    """
    if runtime == "transformers":
        return TransformersRuntime("bundled", device="cpu")
    return OnnxRuntime("bundled")
