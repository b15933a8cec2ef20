"""What every runtime that asks an HTTP server shares.

A new kind of server, say one with OpenAI's ``/v1/embeddings``, brings this and nothing else:

1. **Its options** (``openai/runtime.py``). A subclass of ``RemoteRuntime[OpenAIService]`` whose
   constructor checks its arguments (``runtimes/options.py``, ``checked_headers``, ``server_url``),
   puts them into ``Settings`` or a subclass with more fields, and hands that to
   ``RemoteRuntime.__init__``; ``_connect``, which imports and returns the service; ``identity``.
2. **Its requests** (``openai/service.py``). A subclass of ``Service`` with ``dialect``;
   ``prepare``, which checks once that the server can embed (through ``question``); and ``send``,
   which makes one request with ``connection.json`` and returns the lists of numbers it got.
3. **Its words**. A ``Dialect``: what messages call it, regular expressions that tell its error
   texts apart (too long, not finite, crashed, missing...), and what to do about a failure where
   that differs from the general advice.
4. One line in the table of ``runtimes/__init__.py``.

What it gets:

=================  =================================================================================
``endpoint.py``    addresses, headers, ``EnvironmentVariable``; secrets stay out of messages
``connection.py``  HTTP with one deadline for an exchange, bounded bodies, proxies, no redirects
``failures.py``    kinds of failures, which of them are repeated or divided, their errors; cleaning
                   of what a server said
``retry.py``       pauses: exponential with jitter, ``Retry-After``
``service.py``     repeats, division of a list that fails down to the text at fault, the limit of
                   requests in flight, checks that callers share
``loop.py``        the background event loop, waiting for it, cancellation
``runtime.py``     settings, ``repr``, copies and pickles, one service a process
=================  =================================================================================

Vectors are not checked here: ``gate.py`` does that for every runtime.
"""

from gemma_embed.runtimes.remote.headers import EnvironmentVariable
from gemma_embed.runtimes.remote.runtime import RemoteRuntime

__all__ = ["EnvironmentVariable", "RemoteRuntime"]
