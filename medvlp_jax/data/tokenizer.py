"""Text -> word-piece ids, with Hugging Face tokenizers, and training of a small WordPiece vocabulary."""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
import os
import string
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from absl import logging
from numpy.typing import NDArray
from tokenizers import models, normalizers, pre_tokenizers, processors

from medvlp_jax.data.sentences import split_sentences

PHANTOM = "phantom"
"""Name of the vocabulary that comes with the package, trained on the reports of the cxr_phantom data set."""

UNITS = ("", "words", "sentences")
"""What `encode_units` tells the pieces of a text apart by; "" for nothing."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PAD_NAMES = ("[PAD]", "<pad>", "<|endoftext|>")
_ONE_BY_ONE = 4  # fewer texts than this are not worth a hand-over to the tokenizer's threads


class Tokenizer:
    """A fast tokenizer with its padding id; safe to use from several threads and to send to worker processes.

    Attributes:
      vocab_size, pad_id: ints.
      encoded, truncated: texts encoded and texts cut since the start, in this process.
      over_length, over_count: of texts by sentences, those left out since the start because the text was too long, and
        because it had too many of them.
      fingerprint: hex digest of everything that decides how text becomes ids.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad_id: int | None = None):
        backend.no_truncation()
        backend.no_padding()
        if pad_id is None:
            known = [backend.token_to_id(name) for name in _PAD_NAMES]
            pad_id = next((i for i in known if i is not None), None)
        if pad_id is None:
            raise ValueError(f"The tokenizer has no padding token. Expected one of {', '.join(_PAD_NAMES)}.")
        self._backend, self.pad_id = backend, pad_id
        self.vocab_size = backend.get_vocab_size()
        self.fingerprint = hashlib.blake2b(f"{backend.to_str()}{pad_id}".encode(), digest_size=16).hexdigest()
        self.encoded = self.truncated = self.over_length = self.over_count = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def encode(
        self, texts: Sequence[str], max_len: int, buckets: Sequence[int] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Ids int32 [N, L] and mask bool [N, L] (False = padding), special tokens included.

        A longer text loses its last pieces; closing special tokens such as [SEP] stay.

        Args:
          max_len: most ids per text.
          buckets: lengths to pad to: the smallest that holds the longest text, or max_len. Without: L = max_len.
        """
        if len(texts) < _ONE_BY_ONE:
            encodings = [self._backend.encode(text) for text in texts]
        else:
            encodings = self._backend.encode_batch(list(texts))
        rows, cut = [], 0
        for encoding in encodings:
            ids = encoding.ids
            if len(ids) > max_len:
                closing = _closing(encoding.special_tokens_mask)
                if closing >= max_len:
                    raise ValueError(f"max_len={max_len} leaves no room for text beside the special tokens.")
                ids = ids[: max_len - closing] + ids[len(ids) - closing :]
                cut += 1
            rows.append(ids)
        with self._lock:
            self.encoded += len(rows)
            self.truncated += cut
        longest = max(map(len, rows), default=0)
        length = min((size for size in buckets or () if longest <= size <= max_len), default=max_len)
        ids_NxL = np.full((len(rows), length), self.pad_id, np.int32)
        mask_NxL = np.zeros((len(rows), length), np.bool_)
        for i, ids in enumerate(rows):
            ids_NxL[i, : len(ids)] = ids
            mask_NxL[i, : len(ids)] = True
        return ids_NxL, mask_NxL

    def encode_sentences(
        self, sentences: Sequence[str], max_len: int, max_sentences: int = 0
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]:
        """Ids int32 [L], mask bool [L] and sentence int32 [L] of every piece, of one text that comes by sentences.

        Sentences become pieces one by one and are joined as `[CLS] s1 s2 ... [SEP]`. Special tokens and padding belong
        to sentence -1. A sentence that would not fit is left out with all later ones; only a first one that alone is
        too long is cut. Sentences without pieces do not count. L = max_len.

        Args: max_sentences: most sentences kept; 0: as many as fit.
        Raises: ValueError when max_len leaves no room.
        Source: philip-mueller/lovt@f548985, the joining of sentences.
        """
        framed = self._backend.encode("a")
        closing = _closing(framed.special_tokens_mask)
        opening_ids = framed.ids[: _closing(framed.special_tokens_mask[::-1])]
        closing_ids = framed.ids[len(framed.ids) - closing :]
        room = max_len - len(opening_ids) - len(closing_ids)
        if room < 1:
            raise ValueError(f"max_len={max_len} leaves no room for text beside the special tokens.")
        encodings = self._backend.encode_batch(list(sentences), add_special_tokens=False)
        pieces = [encoding.ids for encoding in encodings if encoding.ids]
        allowed = pieces[:max_sentences] if max_sentences else pieces
        kept, cut = [ids[:room] for ids in allowed[:1]], bool(allowed) and len(allowed[0]) > room
        for ids in allowed[1:]:
            if sum(map(len, kept)) + len(ids) > room:
                break
            kept.append(ids)
        with self._lock:
            self.encoded += 1
            self.truncated += cut or len(kept) < len(pieces)
            self.over_count += len(pieces) - len(allowed)
            self.over_length += len(allowed) - len(kept)
        ids = [*opening_ids, *itertools.chain.from_iterable(kept), *closing_ids]
        ids_L = np.full(max_len, self.pad_id, np.int32)
        ids_L[: len(ids)] = ids
        segment_L = np.full(max_len, -1, np.int32)
        numbers = np.repeat(np.arange(len(kept)), [len(ids) for ids in kept])
        segment_L[len(opening_ids) : len(opening_ids) + len(numbers)] = numbers
        return ids_L, np.arange(max_len) < len(ids), segment_L

    def word_segments(self, ids_NxL: NDArray[np.int32], mask_NxL: NDArray[np.bool_]) -> NDArray[np.int32]:
        """The word of every piece: [CLS] is 0, words are 1..n, [SEP] is n + 1, padding is -1.

        A piece that starts with ## belongs to the word before it. Source: marshuang80/gloria@416466a and
        HKU-MedAI/MGCA@680fe4a, the merging of tokens.
        """
        return word_segments(self._continues_V[ids_NxL], mask_NxL)

    @functools.cached_property
    def _continues_V(self) -> NDArray[np.bool_]:
        return np.asarray([piece.startswith("##") for piece in self.tokens(range(self.vocab_size))], np.bool_)

    def cuts(self) -> str:
        """What was cut since the start, in words, "" when nothing was. Texts count as often as they were encoded."""
        if not self.truncated:
            return ""
        parts = [f"{self.truncated} of {self.encoded} texts were cut"]
        left_out = {"beyond text.max_length": self.over_length, "beyond text.max_sentences": self.over_count}
        parts += [f"{count} sentences {why} left out" for why, count in left_out.items() if count]
        return "; ".join(parts)

    def length(self, text: str) -> int:
        """Ids of a text, special tokens included, before anything is cut."""
        return len(self._backend.encode(text).ids)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The word pieces behind ids."""
        return [self._backend.id_to_token(int(i)) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of one row of ids, without special tokens; WordPiece loses case and spacing around punctuation."""
        return self._backend.decode([int(i) for i in ids if int(i) != self.pad_id], skip_special_tokens=True)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`, which `load` and transformers read."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._backend.save(str(Path(folder) / "tokenizer.json"))


def _closing(special_tokens_mask: Sequence[int]) -> int:
    count = 0
    while count < len(special_tokens_mask) and special_tokens_mask[-1 - count]:
        count += 1
    return count


def word_segments(continues_NxL: NDArray[np.bool_], mask_NxL: NDArray[np.bool_]) -> NDArray[np.int32]:
    starts_NxL = mask_NxL & ~continues_NxL
    return (starts_NxL.cumsum(axis=1) * mask_NxL - 1).astype(np.int32)


def choose_units(units: str) -> str:
    """`units`. Raises: ValueError when they are none of `UNITS`."""
    if units not in UNITS:
        raise ValueError(f"Unknown units {units!r} of text. Choose one of {', '.join(map(repr, UNITS))}.")
    return units


def encode_units(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_len: int,
    units: str = "",
    buckets: Sequence[int] | None = None,
    *,
    max_sentences: int = 0,
) -> dict[str, NDArray]:
    """`ids` int32 and `mask` bool [N, L] of texts; with units `segment` int32 [N, L] too: the unit of every piece.

    Args: units: one of `UNITS`. `words`: see `Tokenizer.word_segments`. `sentences`: see `Tokenizer.encode_sentences`;
      -1 is [CLS], [SEP] and padding. max_len, buckets: as `Tokenizer.encode`.
      max_sentences: as `Tokenizer.encode_sentences`.
    Raises: ValueError for other units.
    """
    if choose_units(units) == "sentences":
        rows = [tokenizer.encode_sentences(split_sentences(text), max_len, max_sentences) for text in texts]
        ids_NxL, mask_NxL, segment_NxL = (np.stack(parts) for parts in zip(*rows, strict=True))
        longest = int(mask_NxL.sum(axis=1).max())
        length = min((size for size in buckets or () if longest <= size <= max_len), default=max_len)
        fields = {"ids": ids_NxL, "mask": mask_NxL, "segment": segment_NxL}
        return {name: x_NxL[:, :length] for name, x_NxL in fields.items()}
    ids_NxL, mask_NxL = tokenizer.encode(texts, max_len, buckets) if buckets else tokenizer.encode(texts, max_len)
    fields = {"ids": ids_NxL, "mask": mask_NxL}
    return fields | {"segment": tokenizer.word_segments(ids_NxL, mask_NxL)} if units == "words" else fields


def load(text_weights: str | os.PathLike[str], *, lower_case: bool | None = None) -> Tokenizer:
    """The tokenizer that belongs to text weights.

    Args:
      text_weights: `phantom`; a local folder with `tokenizer.json`, `vocab.txt` (WordPiece) or any files that
        transformers understands; or the id of a model repository on the Hugging Face hub.
      lower_case: for `vocab.txt`; default: `do_lower_case` of the folder's `tokenizer_config.json`, else True, which is
        what transformers does.

    Raises: FileNotFoundError for a folder without a tokenizer or a repository that cannot be reached.
    """
    name = os.fspath(text_weights)
    if name == PHANTOM:
        with resources.as_file(resources.files("medvlp_jax") / "assets" / "phantom_vocab.txt") as path:
            return Tokenizer(_wordpiece(_read_vocab(path), lower_case=True))
    folder = Path(name)
    if (folder / "tokenizer.json").is_file():
        return Tokenizer(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), _configured_pad(folder))
    if (folder / "vocab.txt").is_file():
        vocab = _read_vocab(folder / "vocab.txt")
        if lower_case is None:
            lower_case = bool(_read_json(folder / "tokenizer_config.json").get("do_lower_case", True))
        if lower_case and any(piece != piece.lower() for piece in vocab if piece not in _SPECIAL):
            logging.warning("%s has upper-case pieces, but text is lower-cased first (do_lower_case).", folder)
        return Tokenizer(_wordpiece(vocab, lower_case=lower_case))
    return _from_transformers(name, is_folder=folder.is_dir())


def _from_transformers(name: str, *, is_folder: bool) -> Tokenizer:
    import transformers  # seconds to import, and not needed for the common layouts above

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        where = "The folder holds no tokenizer" if is_folder else "It is neither a folder nor a reachable repository"
        raise FileNotFoundError(
            f"No tokenizer for text weights {name!r}. {where}. Give a folder with vocab.txt or tokenizer.json, the id "
            f"of a repository on the Hugging Face hub, or {PHANTOM!r}."
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"The tokenizer of {name!r} ({type(loaded).__name__}) has no fast version (tokenizer.json).")
    return Tokenizer(backend, loaded.pad_token_id)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _configured_pad(folder: Path) -> int | None:
    return _read_json(folder / "config.json").get("pad_token_id")


def _read_vocab(path: Path) -> dict[str, int]:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    missing = [token for token in _SPECIAL[:4] if token not in vocab]
    if missing:
        raise ValueError(f"{path.name} is no BERT vocabulary: it lacks {', '.join(missing)}.")
    return vocab


def _wordpiece(vocab: dict[str, int], *, lower_case: bool) -> tokenizers.Tokenizer:
    """BERT's tokenization with a given vocabulary."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.add_special_tokens([token for token in _SPECIAL if token in vocab])
    return backend


def train_wordpiece(texts: Iterable[str], size: int) -> list[str]:
    """A lower-case WordPiece vocabulary of at most `size` pieces, in the order of their ids; same texts, same result.

    It starts with [PAD] [UNK] [CLS] [SEP] [MASK], then holds every printable ASCII character, alone and (letters and
    digits) as a continuation, so that no ASCII word becomes [UNK]. Then come the learned pieces, the most frequent
    neighbours joined first. (The trainer of the tokenizers library breaks ties by chance, from run to run.)

    Raises ValueError when `size` leaves no room for learned pieces.
    """
    letters = string.ascii_lowercase + string.digits
    base = [*_SPECIAL, *sorted(letters + string.punctuation), *(f"##{c}" for c in letters)]
    if size <= len(base):
        raise ValueError(f"size={size} must be above {len(base)}, the special tokens and single characters.")
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: collections.Counter[str] = collections.Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = dict.fromkeys(base)
    pieces.update(dict.fromkeys(sorted({piece for word in words for piece in _characters(word)})))
    for piece in _joined_pieces(words):
        if len(pieces) >= size:
            break
        pieces[piece] = None
    return list(pieces)[:size]


def _characters(word: str) -> list[str]:
    return [word[0], *(f"##{c}" for c in word[1:])]


def _joined_pieces(words: Mapping[str, int]) -> Iterator[str]:
    """Pieces made by joining the most frequent pair of neighbours again and again, until none occurs twice."""
    split = {word: _characters(word) for word in words}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    where: dict[tuple[str, str], set[str]] = collections.defaultdict(set)

    def count(word: str, sign: int) -> None:
        for pair in itertools.pairwise(split[word]):
            counts[pair] += sign * words[word]
            where[pair].add(word)

    for word in words:
        count(word, +1)
    while counts:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        if counts[best] < 2:
            return
        joined = best[0] + best[1].removeprefix("##")
        for word in where.pop(best):
            count(word, -1)
            old, new = split[word], []
            while old:
                step = 2 if tuple(old[:2]) == best else 1
                new.append(joined if step == 2 else old[0])
                old = old[step:]
            split[word] = new
            count(word, +1)
        counts = +counts
        yield joined
