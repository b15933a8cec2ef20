"""Texts on which a forward pass is verified when it is loaded: several languages and lengths.

At most 24 tokens each with EmbeddingGemma's tokenizer: transformers pads them to the longest.
"""

from __future__ import annotations

PROBES = (
    "Tea",
    "Where is the spare key?",
    "Die Heizung verliert Druck, obwohl im Keller nichts tropft.",
    "Поезд опоздал на сорок минут, и мы пропустили пересадку.",
    "停電に備えて、懐中電灯と電池を玄関の棚に置いてあります。",
    "أغلق النافذة قبل أن يبدأ المطر، فالخشب لا يحتمل الماء.",
    "बीज बोने से पहले मिट्टी को दो दिन धूप में सूखने दें।",
)
