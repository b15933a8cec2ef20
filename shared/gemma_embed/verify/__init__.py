"""Whether a runtime gives the model's vectors, and if not, which one thing is wrong.

From vectors alone: a runtime is asked for twelve texts, and its answers are compared with those of
the trained model and with those of every known fault (``golden/``). Nothing but NumPy is needed.
"""

from gemma_embed.verify.causes import CAUSES, Cause
from gemma_embed.verify.collection import CollectionVerdict, verify_collection
from gemma_embed.verify.runtime import Verdict, verify

__all__ = ["CAUSES", "Cause", "CollectionVerdict", "Verdict", "verify", "verify_collection"]
