"""For test suites of applications: meaningful vectors, offline, in a second.

The bundled model has EmbeddingGemma's architecture, prompts and widths, and is loaded by the same
code, so a test that finds the right passage with it exercises the complete path. Its vectors are
comparable with no other model's. It scores the same with and without prompts, so it cannot show
that a prompt is missing: assert on the text that reaches a runtime for that.

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
from gemma_embed.runtimes.options import check_choice


@cache
def bundled_runtime(
    runtime: Literal["onnx", "transformers"] = "onnx",
) -> OnnxRuntime | TransformersRuntime:
    """Return a runtime of the bundled model on the CPU, one for the whole process.

    Args:
        runtime: ``onnx`` needs ``gemma-embed[onnx]`` and no torch; ``transformers`` is for suites
            of applications that use that one. Their vectors are equal to 1e-5.

    Raises:
        ConfigurationError: If it is another runtime: the bundled model runs in this process.
    """
    check_choice("runtime", runtime, ("onnx", "transformers"))
    if runtime == "transformers":
        return TransformersRuntime("bundled", device="cpu")
    return OnnxRuntime("bundled")
