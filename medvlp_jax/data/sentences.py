"""Report text -> sentences, by the project's rule and by the rules of two published systems.

`simple` is the default: rule based, nothing to download, original characters. `gloria` (GLoRIA, also MGCA) and
`medclip` repeat the released code, with effects that matter when numbers are compared: `gloria` splits decimals and
titles and drops punctuation and everything outside ASCII; `medclip` takes a count or year that ends a sentence for a
list marker; `medclip_old` is the rule of MedCLIP's older script, that of GLoRIA with sentences of five tokens or more.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_ABBREVIATIONS = {
    *("dr", "drs", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "vs", "cf", "ca", "approx", "est", "no", "nos", "fig"),
    *("figs", "ref", "incl", "resp", "etc", "e.g", "i.e", "a.k.a", "q.v", "b.i.d", "t.i.d", "q.d", "i.v", "p.o"),
    *("hosp", "dept", "tel", "ext", "min", "max", "temp", "post", "ant", "lat", "inf", "sup", "bilat"),
}
_SOMETIMES_FINAL = {"a.m", "p.m", "etc", "u.s", "i.v", "p.o", "b.i.d", "t.i.d", "q.d", "am", "pm", "no", "min", "max"}
_SINGLE_LETTER = re.compile(r"[A-Z]")
_MARKER = re.compile(r"(?:^|(?<=[.!?:;]\s)|(?<=\n))[ \t]*(?:\(?\d{1,2}[.)]|[-*•–])[ \t]+(?=\S)", re.MULTILINE)
_END = re.compile(r"([.!?]+)([\"')\]]*)(?=\s|$)")


def split_sentences(text: str, rule: str = "simple", *, min_tokens: int | None = None) -> list[str]:
    """Sentences of a report section, in order.

    Args: text: any text; line ends are blanks, except that a blank line always ends a sentence. rule: one of `RULES`.
      min_tokens: shortest sentence kept; default 1 (`simple`), 2 (`gloria`), 5 (`medclip`, `medclip_old`). Tokens are
      runs of letters and digits or, in `medclip`, also of punctuation.
    Raises: ValueError for another rule.
    """
    if rule not in RULES:
        hint = NOT_HERE.get(rule, "")
        raise ValueError(f"Unknown sentence rule {rule!r}. Rules: {', '.join(RULES)}.{hint}")
    split, shortest = RULES[rule]
    if min_tokens is not None and min_tokens < 1:
        raise ValueError(f"min_tokens={min_tokens} must be at least 1.")
    return split(text, shortest if min_tokens is None else min_tokens)


def rejoined(text: str, rule: str) -> str:
    """The sentences of a text, joined by blanks: what a rule that cleans leaves of it.

    Sentences that are too short for the rule are left out, unless all are. Raises: ValueError as `split_sentences`.
    """
    return " ".join(split_sentences(text, rule) or split_sentences(text, rule, min_tokens=1))


def _simple(text: str, min_tokens: int) -> list[str]:
    """Splits at . ! ? before white space, at list markers and at blank lines; keeps decimals, titles and initials
    whole.

    A period ends no sentence after an abbreviation, a single capital letter, or inside an ellipsis that goes on in
    lower case. After abbreviations that may end a sentence (p.m., etc.) it does when a capital follows.
    """
    sentences = []
    for paragraph in re.split(r"\n[ \t]*\n\s*", text.replace("\r\n", "\n").replace("\r", "\n")):
        for item in _items(paragraph):
            sentences.extend(_periods(" ".join(item.split())))
    return [sentence for sentence in sentences if len(re.findall(r"\w+", sentence.replace("_", ""))) >= min_tokens]


def _items(paragraph: str) -> list[str]:
    """A paragraph cut at its list markers, which are dropped."""
    return [piece for piece in _MARKER.split(paragraph) if piece.strip()]


def _periods(text: str) -> list[str]:
    sentences, start = [], 0
    for match in _END.finditer(text):
        rest = text[match.end() :].lstrip()
        if rest and not _ends(text[start : match.start()], match.group(1), rest):
            continue
        sentences.append(text[start : match.end()].strip())
        start = match.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends(before: str, mark: str, rest: str) -> bool:
    if mark != ".":
        return not (mark.startswith("..") and rest[0].islower())
    words = before.split()
    word = words[-1].lower().lstrip("([\"'") if words else ""
    capital = rest[0].isupper() or rest[0].isdigit() or rest[0] == "_"
    if word in _SOMETIMES_FINAL:
        return rest[0].isupper()
    if word in _ABBREVIATIONS:
        return False
    if words and _SINGLE_LETTER.fullmatch(words[-1]) and len(words) > 1:
        return False
    return capital or not rest[0].islower() or len(word) > 3


def _gloria(text: str, min_tokens: int) -> list[str]:
    """Newlines to blanks; cut at digits with a period, then at every period; lower-case ASCII words, no punctuation.

    Source: marshuang80/gloria `datasets/pretraining_dataset.py`.
    """
    sentences = []
    for item in re.split(r"[0-9]+\.", text.replace("\n", " ")):
        for piece in item.split("."):
            words = (word.encode("ascii", "ignore").decode() for word in re.findall(r"\w+", piece.lower()))
            kept = [word for word in words if word]
            if len(kept) >= min_tokens:
                sentences.append(" ".join(kept))
    return sentences


def _medclip(text: str, min_tokens: int) -> list[str]:
    """Newlines to blanks; cut at list markers with the character after them, then at a period and a blank; lower case.

    Tokens are words or runs of punctuation; a sentence needs two of them, and `min_tokens` after everything outside
    ASCII is dropped. Source: RyanWangZf/MedCLIP `medclip/dataset.py`.
    """
    sentences = []
    for item in re.split(r"[0-9]+\.+[^0-9]", text.replace("\n", " ")):
        for piece in item.split(". "):
            tokens = re.findall(r"\w+|[^\w\s]+", piece.lower())
            kept = [token for token in (token.encode("ascii", "ignore").decode() for token in tokens) if token]
            if len(tokens) > 1 and len(kept) >= min_tokens:
                sentences.append(" ".join(kept))
    return sentences


RULES: dict[str, tuple[Callable[[str, int], list[str]], int]] = {
    "simple": (_simple, 1),
    "gloria": (_gloria, 2),
    "medclip": (_medclip, 5),
    "medclip_old": (_gloria, 5),
}
"""Rule -> (splitter, default of `min_tokens`)."""

NOT_HERE: dict[str, str] = {
    name: f" {users} split with {package}, which downloads a trained model; the nearest rule here is 'simple'."
    for name, package, users in (("stanza", "Stanza", "LoVT's scripts"), ("nltk", "NLTK", "MedKLIP's scripts"))
}
"""Rules of other projects that are left out -> why, for the error message."""
