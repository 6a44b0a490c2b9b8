"""Report text before it is tokenized: white space, case, characters, and words removed by de-identification.

The rules repeat what published systems feed their text encoders; `none` and `collapse` change no word. Every rule is a
function of text alone, so it may be applied to sections, sentences or whole reports.
"""

from __future__ import annotations

import re
from collections.abc import Callable

PLACEHOLDER = "___"
DEID = ("keep", "drop", "unify")
"""What becomes of the marks that stand for removed words: left as they are, left out, or one placeholder per run."""

_DEID_RUN = re.compile(
    r"(?<![\w_])(?:_{3,}|[Xx]{4,}|\[\*\*[^\]]*\*\*\])(?:[ \t]+(?:_{3,}|[Xx]{4,}|\[\*\*[^\]]*\*\*\]))*(?![\w_])"
)
_RULER = re.compile(r"[ \t]*_{10,}[ \t]*")
_HEADER = re.compile(r"\b(?:findings?(?: and impression)?|impression|conclusion)[ \t]*:", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,/-])\d+[.)]?(?![\w.,/%-])")
_BLIP2 = re.compile(r"([.!\"()*#:;~])")


def clean(text: str, rule: str = "collapse", *, deid: str = "keep", placeholder: str = PLACEHOLDER) -> str:
    """Cleaned text.

    Args: rule: one of `RULES`. deid: one of `DEID`, applied before the rule. placeholder: what `unify` writes for every
      run of marks; a tokenizer knows it best when it is one of its tokens, such as "[MASK]".
    Raises: ValueError for another rule or `deid`.
    """
    if rule not in RULES:
        raise ValueError(f"Unknown cleaning rule {rule!r}. Rules: {', '.join(RULES)}.")
    return RULES[rule](mark_removed_words(text, deid, placeholder))


def mark_removed_words(text: str, deid: str = "keep", placeholder: str = PLACEHOLDER) -> str:
    """`___` (MIMIC-CXR), `XXXX` (Open-i) and `[** ... **]` (older MIMIC releases), kept, dropped or unified.

    A line of ten or more underscores and nothing else separates an addendum and stays.

    Raises: ValueError for another `deid`.
    """
    if deid not in DEID:
        raise ValueError(f"Unknown treatment {deid!r} of removed words. Treatments: {', '.join(DEID)}.")
    if deid == "keep":
        return text
    lines = text.split("\n")
    if deid == "unify":
        return "\n".join(
            line if _RULER.fullmatch(line) else _DEID_RUN.sub(lambda _: placeholder, line) for line in lines
        )
    kept = []
    for line in lines:
        if not _RULER.fullmatch(line):
            line, dropped = _DEID_RUN.subn("", line)
            if dropped:
                line = re.sub(r"(?<=\S)[ \t]{2,}", " ", line)
                line = re.sub(r"(?<=\S)[ \t]+(?=[.,;:])", "", line).rstrip()
        kept.append(line)
    return "\n".join(kept)


def _collapse(text: str) -> str:
    """Newlines and runs of blanks to one blank."""
    return " ".join(text.split())


def _ascii_tokens(text: str, pattern: str) -> str:
    tokens = (token.encode("ascii", "ignore").decode() for token in re.findall(pattern, text.lower()))
    return " ".join(token for token in tokens if token)


def _gloria(text: str) -> str:
    """Lower-case runs of letters and digits, ASCII only (GLoRIA, MGCA): no punctuation, accented letters dropped."""
    return _ascii_tokens(text, r"\w+")


def _medclip(text: str) -> str:
    """Lower-case words and runs of punctuation, ASCII only (MedCLIP)."""
    return _ascii_tokens(text, r"\w+|[^\w\s]+")


def _g2d(text: str) -> str:
    """Without header words and bare numbers (G2D): "IMPRESSION: 1. Small effusion, 2.5 cm" -> "Small effusion, 2.5
    cm"."""
    return _collapse(_NUMBER.sub("", _HEADER.sub("", text)))


def _blip2(text: str) -> str:
    """The caption processor of LAVIS (BLIP-2): lower case, `. ! " ( ) * # : ; ~` to blanks, at most 50 words.

    It destroys decimals and sentence borders.
    """
    words = _BLIP2.sub(" ", text.lower()).split()
    return " ".join(words[:50])


RULES: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "collapse": _collapse,
    "gloria": _gloria,
    "medclip": _medclip,
    "g2d": _g2d,
    "blip2": _blip2,
}
"""Cleaning rule -> function of text."""
