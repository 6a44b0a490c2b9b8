"""A data set's own words -> the fourteen CheXpert names: one table per set, every row with its reason.

Where it is not sure that two names mean the same, the record says "not mentioned" rather than a guess; the set's own
words stay in `own_labels`. "The labeler" in a reason is the CheXpert labeler (stanfordmlgroup/chexpert-labeler,
phrases/mention), whose phrases say best what the fourteen names cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from medvlp_jax.data.labels import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN

SAME, KIND, WIDER, MAYBE, NONE = "same", "kind of", "wider than", "may be", "no name"
RELATIONS: dict[str, str] = {
    SAME: "means the CheXpert name: every state carries over",
    KIND: "is a kind of it: present carries over, absent says nothing",
    WIDER: "covers it and more: absent carries over, present says nothing",
    MAYBE: "may be a kind of it: says nothing, and when present, an absence of the CheXpert name is not stated either",
    NONE: "is left in the set's own words",
}
"""Relation of the own words to the CheXpert name -> what follows."""


class Row(NamedTuple):
    """own: names of the set. relation: one of `RELATIONS`. name: the CheXpert name, "" with `NONE`. why: the reason."""

    own: tuple[str, ...]
    relation: str
    name: str
    why: str


def same(names: Iterable[str], why: str = "the same words") -> list[Row]:
    """A row for each name that both sides use, upper and lower case aside."""
    return [Row((name,), SAME, name.title(), why) for name in names]


def translate(own: Mapping[str, int], rows: Sequence[Row]) -> dict[str, int]:
    """The CheXpert states that a set's own labels state.

    Of several own names for one, any that is present makes it present, else any uncertain makes it uncertain, else it
    is absent, unless a `MAYBE` of it is present or uncertain.

    Args: own: {own name: 1, 0 or -1}; others are not mentioned.
    """
    states: dict[str, int] = {}
    rank = {ABSENT: 0, UNCERTAIN: 1, PRESENT: 2}
    doubtful = set()
    for row in rows:
        for name in row.own:
            state = own.get(name, NOT_MENTIONED)
            if state not in rank or row.relation == NONE:
                continue
            if row.relation == MAYBE:
                doubtful |= {row.name} if state != ABSENT else set()
            elif row.relation == SAME or (state == PRESENT if row.relation == KIND else state == ABSENT):
                states[row.name] = max(states.get(row.name, ABSENT), state, key=rank.__getitem__)
    return {name: state for name, state in states.items() if state != ABSENT or name not in doubtful}


def names_of(rows: Sequence[Row]) -> dict[str, str]:
    """Own name -> the CheXpert name that a box or mask of it may carry: of rows that mean it or a kind of it."""
    return {name: row.name for row in rows if row.relation in (SAME, KIND) for name in row.own}


def markdown(rows: Sequence[Row]) -> str:
    """The table of a data set's page."""
    lines = ["| own words | | CheXpert name | why |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {', '.join(r.own)} | {r.relation} | {r.name or '–'} | {r.why} |" for r in rows)])
