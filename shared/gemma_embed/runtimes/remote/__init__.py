"""What every runtime that asks an HTTP server shares.

A new kind of server, say one with OpenAI's ``/v1/embeddings``, brings this and nothing else:

1. **Its options** (``openai/runtime.py``). A subclass of ``RemoteRuntime[OpenAIService]`` whose
   constructor puts its arguments into ``Settings``, which checks them, or into a subclass with more
   fields (``runtimes/options.py``, ``checked_headers`` and ``server_url`` check those), and hands
   that to ``RemoteRuntime.__init__``; and ``_connect``, which imports and returns the service.
2. **Its requests** (``openai/service.py``). A subclass of ``Service`` with ``dialect``;
   ``ask_identity``, which checks that the server computes the model; ``revision``, which asks
   whether it still does; ``load``; and ``send``, which makes one request with ``connection.json``
   and returns the lists of numbers it got. The first three ask through ``question``.
3. **Its words** (``openai/words.py``). A ``Dialect``: what messages call it, regular expressions
   that tell its error texts apart (``Kind``: too long, not finite, crashed, missing...), and what
   to do about a failure where that differs from the general advice.
4. One line in the table of ``runtimes/named.py``.

What it gets:

=================  =================================================================================
``address.py``     the forms in which users write addresses
``headers.py``     headers, ``EnvironmentVariable``; their values stay out of messages and pickles
``connection.py``  HTTP with one deadline for an exchange, bounded bodies, proxies, no redirects
``failures.py``    kinds of failures: which are repeated or divided, their errors and advice
``shown.py``       cleaning of what a server said
``retry.py``       pauses: exponential with jitter, ``Retry-After``
``service.py``     repeats, division of a list that fails down to the text at fault, the limit of
                   requests in flight, weights that change while in use, checks that callers share
``loop.py``        the background event loop, waiting for it, cancellation
``runtime.py``     settings, ``repr``, copies and pickles, one service a process
=================  =================================================================================

Vectors are not checked here: ``gate.py`` does that for every runtime.
"""

from gemma_embed.runtimes.remote.headers import EnvironmentVariable
from gemma_embed.runtimes.remote.runtime import RemoteRuntime

__all__ = ["EnvironmentVariable", "RemoteRuntime"]
