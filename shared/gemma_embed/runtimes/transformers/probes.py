"""Texts on which a forward pass is verified when it is loaded: several languages and lengths."""

from __future__ import annotations

PROBES = (
    "Tea",
    "Where is the spare key?",
    "Die Heizung verliert Druck, obwohl im Keller nichts tropft.",
    "La réunion est reportée à jeudi, salle 204 ; apportez vos notes.",
    "Поезд опоздал на сорок минут, и мы пропустили пересадку.",
    "停電に備えて、懐中電灯と電池を玄関の棚に置いてあります。",
    "أغلق النافذة قبل أن يبدأ المطر، فالخشب لا يحتمل الماء.",
    "बीज बोने से पहले मिट्टी को दो दिन धूप में सूखने दें।",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)",
    "The bridge was closed for repairs in March. Buses take the road along the river instead, "
    "which adds a quarter of an hour, and the last one leaves the station at 22:40.",
)
