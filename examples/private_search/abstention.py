"""Whether the best hit says more than this library says to any question.

A fixed cosine does not do: a model's cosines differ by topic, by language and by how a question is
put, and the highest of a hundred thousand is higher than that of a hundred. So the library itself
is asked the questions below, which hardly anybody's documents answer, and what they find is the
measure. A question is answerable if it finds more than all but a few of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from private_search.search import Search

# Better than so large a share of the questions below. Some library may answer one of them.
NEEDED = 0.95
# What the share of rare words counts, in standard deviations of the cosine.
_WORDS = 3.0

UNRELATED = tuple(
    line
    for line in """
What colour is the door of the lighthouse keeper's shed in Torshavn?
How many strings did the harp in the embassy have?
When was the submarine's periscope last repainted?
Which glacier did my grandmother ski across in 1951?
What is the serial number of the espresso machine on the research ship?
Who won the village's falconry contest?
How much does the aquarium pay for its seahorses?
What is the boiling point of tungsten hexafluoride?
At which gate does the night train from Samarkand arrive?
What did the astronaut say about her left glove?
How long is the waiting list of the observatory?
Which composer wrote the opera about the beekeeper?
How do I calibrate a seismograph?
What is the minimum age for a hot-air balloon licence in Peru?
Who inherited the vineyard on the volcano?
How many lions live in the national park?
What was the score of the curling final?
When is the camel market held?
What is the recommended tyre pressure for a fire engine?
Which dye did the weavers use for the throne's cushion?
How do I tune a church organ's reed pipes?
What was the name of the ventriloquist's dummy?
How deep is the crater lake?
Who translated the Icelandic sagas into Maori?
What is the maximum load of the drawbridge?
How many votes did the mayor of the mining town get?
When does the planetarium show the film about comets?
Which orchid grows on the north wall of the monastery?
How is the enzyme purified before crystallisation?
What is the melting temperature of the solder on the satellite?
Who designed the stamps with the zeppelin?
What fine do I pay for fishing in the moat?
How many kilograms of saffron were stolen?
Which frequency does the coast guard use at night?
When did the circus last visit the island?
What did the judge decide about the stolen cello?
Where was the meteorite found that the museum bought?
How often must a parachute be repacked?
What is the salary of a chimney sweep in Oslo?
Who painted the ceiling of the railway station?
Welche Farbe hat die Kutsche des Bischofs?
Wie viele Rentiere besitzt der Schamane?
Wann wurde das Bergwerk geflutet?
Wer hat den Wettbewerb im Eisstockschießen gewonnen?
Wie hoch ist der Zoll auf Bernstein?
Quelle est la profondeur du puits du château ?
Qui a gagné la course de traîneaux ?
Combien coûte la licence de chasse au sanglier ?
À quelle heure ferme le musée du cirque ?
¿Cuántos caballos tenía el virrey?
¿Cuándo se inauguró el observatorio del desierto?
¿Quién reparó el reloj de la catedral?
Quanti violini ha costruito il liutaio?
Chi ha vinto il palio l'anno scorso?
Hoeveel molens staan er langs het kanaal?
Quantos faróis existem na costa norte?
灯台の高さは何メートルですか。
相撲大会の優勝者は誰でしたか。
火山博物馆几点关门？
Сколько оленей живёт в заповеднике?
""".strip().splitlines()
)


@dataclass(frozen=True)
class Calibration:
    """What unrelated questions find in a library.

    Attributes:
        passages: How many it had then.
        centre: Median of the cosines.
        spread: Their standard deviation.
        scores: Of the questions, in order.
    """

    passages: int
    centre: float
    spread: float
    scores: tuple[float, ...]

    def score(self, evidence: tuple[float, float]) -> float:
        """Join cosine and the share of rare words into one number."""
        cosine, share = evidence
        return (cosine - self.centre) / self.spread + _WORDS * share

    def confidence(self, evidence: tuple[float, float]) -> float:
        """Return the share of unrelated questions with a lower score."""
        return float(np.searchsorted(self.scores, self.score(evidence)) / len(self.scores))


def calibrated(search: Search) -> Calibration:
    """Ask a library the unrelated questions."""
    from private_search.catalogue import Filter

    found = []
    queries = search.queries(UNRELATED)
    for question, query in zip(UNRELATED, queries, strict=True):
        ranked, similarity = search.ranked(question, query, Filter())
        best = search.library.catalogue.by_number(ranked[:1])
        found += [search.evidence(question, similarity, each) for each in best.values()]
    cosines = [cosine for cosine, _ in found] or [0.0]
    spread = float(np.std(cosines)) or 1.0
    count = search.library.catalogue.count()
    plain = Calibration(count, float(np.median(cosines)), spread, ())
    scores = tuple(sorted(map(plain.score, found)))
    return Calibration(count, plain.centre, spread, scores)
