"""Gemma 3 text networks, fast on a CPU: token ids in, vectors out.

Knows tensors and token ids, but no prompt, store or framework. Nothing heavy is imported before it
is used: the modules for ONNX and the tokenizer need NumPy alone until a graph is written or run.

``weights``        ``Weights``: the tensors of a list of safetensors files, read one by one.
``architecture``   ``Architecture``: the network's sizes, from a parsed ``config.json``.
``graph``          ``write_graph``: the network as an ONNX graph, in float32, 8 or 4 bits.
``onnx_forward``   ``OnnxForward``: runs that graph on ONNX Runtime.
``packed``         ``PackedForward``: the network on torch, without padding. Imports torch.
``bpe``            ``BpeTokenizer``: Gemma's tokenizer in a few megabytes.
``errors``         ``Unsupported`` and ``Damaged``: all that these modules raise on purpose.
"""
