"""Made-up reports in the words of the phantoms, and their tokenizer."""

import itertools

from medvlp_jax.data import tokenizer as tokenizers

WORDS = tokenizers.load("phantom")
NAMES = WORDS.tokens(range(WORDS.vocab_size))
CLS, SEP, MASK = (NAMES.index(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
SIDES, SIZES, PLACES = ("left", "right"), ("small", "moderate", "large"), ("base", "apex", "hilum", "lung", "chest")
SENTENCES = [
    f"There is a {size} {what} at the {side} {place}."
    for side, size, place, what in itertools.product(SIDES, SIZES, PLACES, ("effusion", "opacity"))
]
SOURCE = [
    {"findings": text, "impression": SENTENCES[0] if i % 2 else ""} for i, text in enumerate([*SENTENCES, SENTENCES[3]])
]


def matched_source(copies=1):
    """Findings and impressions that name the same place; every report `copies` times."""
    return [{"findings": text, "impression": text.replace("There is a ", "Known ")} for text in SENTENCES * copies]
