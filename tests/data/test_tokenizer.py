"""Round trips, cutting, folders, and the vocabulary that ships with the package."""

import json
import pickle
import string
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from medvlp_jax.data import tokenizer
from medvlp_jax.data.tokenizer import encode_units, load, train_wordpiece

TEXT = "No pleural effusion or pneumothorax. The heart is normal in size."
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lungs", "are", "clear", "Lungs", "lung", "##s", "."]


def folder_with_vocab(path, pieces=PIECES, **config):
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def phantom():
    return load("phantom")


def test_ids_and_mask(phantom):
    ids, mask = phantom.encode([TEXT, ""], 32)
    assert (ids.shape, ids.dtype, mask.dtype) == ((2, 32), np.int32, np.bool_)
    assert mask[1].sum() == 2  # [CLS] [SEP]
    np.testing.assert_array_equal(mask, np.arange(32) < mask.sum(axis=1, keepdims=True))
    assert (ids[~mask] == phantom.pad_id).all()
    tokens = phantom.tokens(ids[0][mask[0]])
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")


def test_round_trip(phantom):
    ids, _ = phantom.encode([TEXT], 64)
    assert phantom.decode(ids[0]).replace(" .", ".") == TEXT.lower()


def test_phantom_vocabulary_is_well_formed(phantom):
    lines = (resources.files("medvlp_jax") / "assets" / "phantom_vocab.txt").read_text().split("\n")[:-1]
    assert lines[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(lines) == len(set(lines)) == phantom.vocab_size
    assert 500 < len(lines) <= 2000
    assert {*string.ascii_lowercase, *string.digits, *(f"##{c}" for c in string.ascii_lowercase)} <= set(lines)
    assert {"effusion", "pneumothorax", "cardiomegaly", "lungs", "clear"} <= set(lines)


def test_any_ascii_text_is_known(phantom):
    ids, _ = phantom.encode([string.printable, "Xylophone qwertz 0x7f 12.5 cm (s/p CABG) ___"], 256)
    assert 1 not in ids


def test_phantom_reports_take_few_pieces(phantom):
    report = pytest.importorskip("tfds_builders.cxr_phantom.report")
    from tfds_builders.cxr_phantom.anatomy import stream
    from tfds_builders.cxr_phantom.study import patient_body, sample_study

    texts = []
    for patient in range(3_000_000, 3_000_040):  # validation patients
        study = sample_study(0, patient, 0)
        texts.append(report.write_report(stream(0, patient, 1, 0, 2), study, patient_body(0, patient)).text)
    ids, mask = phantom.encode(texts, 512)
    assert 1 not in ids
    assert mask.sum() < 1.5 * sum(len(text.split()) for text in texts)


def test_longer_text_is_cut_counted_and_stays_closed():
    tok = load("phantom")
    ids, mask = tok.encode([TEXT, "clear"], 8)
    full, _ = tok.encode([TEXT], 64)
    np.testing.assert_array_equal(ids[0][:-1], full[0][:7])
    assert tok.tokens(ids[0])[-1] == "[SEP]"
    assert mask[0].all()
    assert (tok.truncated, tok.encoded) == (1, 3)
    with pytest.raises(ValueError, match="max_len=1 leaves no room"):
        tok.encode([TEXT], 1)


def test_sentences_are_joined_and_keep_their_number():
    tok = load("phantom")
    sentences = ["The heart is large.", "", "Clear lungs.", "No effusion."]
    ids, mask, segment = tok.encode_sentences(sentences, 24)
    whole, whole_mask = tok.encode([" ".join(sentences)], 24)
    np.testing.assert_array_equal(ids, whole[0])  # WordPiece splits at blanks first
    np.testing.assert_array_equal(mask, whole_mask[0])
    assert (ids.dtype, mask.dtype, segment.dtype) == (np.int32, np.bool_, np.int32)
    for number, sentence in enumerate((sentences[0], *sentences[2:])):
        alone, alone_mask = tok.encode([sentence], 24)
        np.testing.assert_array_equal(ids[segment == number], alone[0][alone_mask[0]][1:-1])
    assert segment[0] == segment[mask.sum() - 1] == -1
    assert (segment[~mask] == -1).all()
    assert (tok.truncated, tok.over_length, tok.over_count) == (0, 0, 0)


def test_sentences_that_do_not_fit_are_left_out_and_counted():
    tok = load("phantom")
    four, eight = "a b c d", "a b c d e f g h"
    cases = [
        ([four, four, "a"], 10, 0, [4, 4], (1, 1, 0)),  # exactly full; the third is left out
        ([four, eight, "a"], 10, 0, [4], (1, 2, 0)),  # the last would fit, but goes with the one before it
        ([eight, "a"], 6, 0, [4], (1, 1, 0)),  # a first sentence alone is cut
        ([eight], 6, 0, [4], (1, 0, 0)),
        ([four, "a", "b"], 12, 2, [4, 1], (1, 0, 1)),
        ([four, eight, "b"], 12, 2, [4], (1, 1, 1)),
        ([], 12, 2, [], (0, 0, 0)),
        (["", " "], 12, 2, [], (0, 0, 0)),
    ]
    for sentences, max_len, most, lengths, counts in cases:
        before = tok.encoded, tok.truncated, tok.over_length, tok.over_count
        ids, mask, segment = tok.encode_sentences(sentences, max_len, most)
        after = tok.encoded, tok.truncated, tok.over_length, tok.over_count
        assert [int((segment == i).sum()) for i in range(segment.max() + 1)] == lengths, sentences
        assert tuple(b - a for a, b in zip(before, after, strict=True)) == (1, *counts), sentences
        assert mask.sum() == sum(lengths) + 2
        assert tok.tokens(ids[mask])[-1] == "[SEP]"
    with pytest.raises(ValueError, match="max_len=2 leaves no room"):
        tok.encode_sentences(["a"], 2)


def test_what_was_cut_is_said():
    tok = load("phantom")
    tok.encode(["a b", "c"], 8)
    assert tok.cuts() == ""
    tok.encode(["a b c d e f g h"], 6)
    tok.encode_sentences(["a b c d", "a", "b", "c d"], 7, 3)
    assert tok.cuts() == (
        "2 of 4 texts were cut; 1 sentences beyond text.max_length left out; 1 sentences beyond text.max_sentences "
        "left out"
    )


def test_one_text_or_many_give_the_same_ids(phantom):
    texts = [TEXT, "", "clear", TEXT * 5, "4.5 cm"]
    ids, mask = phantom.encode(texts, 40)
    for i, text in enumerate(texts):
        one_ids, one_mask = phantom.encode([text], 40)
        np.testing.assert_array_equal(one_ids[0], ids[i])
        np.testing.assert_array_equal(one_mask[0], mask[i])
    assert phantom.encode([], 8)[0].shape == (0, 8)


def test_buckets_shorten_the_padding(phantom):
    assert phantom.encode(["clear"], 64, buckets=(8, 16, 32))[0].shape == (1, 8)
    assert phantom.encode([TEXT], 64, buckets=(8, 32, 16))[0].shape == (1, 16)
    assert phantom.encode([TEXT * 4], 64, buckets=(8, 16))[0].shape == (1, 64)


def test_case_follows_the_folder(tmp_path):
    lower = load(folder_with_vocab(tmp_path / "a"))
    assert lower.tokens(lower.encode(["Lungs are clear."], 8)[0][0])[1] == "lungs"
    cased = load(folder_with_vocab(tmp_path / "b", do_lower_case=False))
    assert cased.tokens(cased.encode(["Lungs are clear."], 8)[0][0])[1] == "Lungs"
    told = load(tmp_path / "b", lower_case=True)
    assert told.tokens(told.encode(["Lungs are clear."], 8)[0][0])[1] == "lungs"
    assert len({lower.fingerprint, cased.fingerprint}) == 2
    assert told.fingerprint == lower.fingerprint


def test_saved_tokenizer_loads_the_same(tmp_path):
    first = load(folder_with_vocab(tmp_path / "a"))
    first.save(tmp_path / "b")
    second = load(tmp_path / "b")
    np.testing.assert_array_equal(first.encode([TEXT], 16)[0], second.encode([TEXT], 16)[0])
    assert first.fingerprint == second.fingerprint


def test_agrees_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab = Path(__file__).resolve().parents[2].parent / "shared/data/text_resources/vocab/bert_base_uncased_vocab.txt"
    if not vocab.exists():
        pytest.skip("the public BERT vocabulary is not on this machine")
    folder = folder_with_vocab(
        tmp_path, vocab.read_text(encoding="utf-8").splitlines(), tokenizer_class="BertTokenizer"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [TEXT, "Cardiomégalie modérée; 2.5 cm\n\tnodule [MASK] 漢字 ___", "", "a" * 200, TEXT * 20]
    expected = theirs(texts, max_length=32, truncation=True, padding="max_length")
    ids, mask = load(folder).encode(texts, 32)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, np.array(expected["attention_mask"], bool))


def test_tokenizer_travels_to_other_processes(phantom):
    copy = pickle.loads(pickle.dumps(phantom))
    np.testing.assert_array_equal(copy.encode([TEXT], 32)[0], phantom.encode([TEXT], 32)[0])


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"vocab.txt is no BERT vocabulary: it lacks \[CLS\], \[SEP\]"):
        load(folder_with_vocab(tmp_path / "a", ["[PAD]", "[UNK]", "lungs"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"The folder holds no tokenizer\. Give a folder with vocab.txt"):
        load(tmp_path / "empty")


def test_training_repeats_and_covers_the_alphabet():
    texts = ["effusion effusions effused", "the heart the lungs the heart"] * 3
    pieces = train_wordpiece(texts, 200)
    assert pieces == train_wordpiece(list(reversed(texts)), 200)
    assert len(pieces) == len(set(pieces)) <= 200
    assert {"heart", "lungs", "the", "effus", "effusion"} <= set(pieces)
    assert "q" in pieces
    assert "##q" in pieces
    assert len(train_wordpiece(texts, 120)) == 120
    with pytest.raises(ValueError, match="size=50 must be above"):
        train_wordpiece(texts, 50)


def test_learned_pieces_come_from_frequent_neighbours():
    joined = list(tokenizer._joined_pieces({"aab": 5, "ab": 3, "b": 9, "xyz": 1}))
    assert joined == ["aa", "aab", "ab"]  # ties: the pair that sorts last; what occurs once stays apart


# ---- units ------------------------------------------------------------------------------


def merged(text, values):
    """Words as the released code builds them, piece after piece: names and sums."""
    names, sums, bank = [], [], []
    for piece, value in zip(text, values, strict=False):
        if bank and not piece.startswith("##"):
            sums.append(sum(bank))
            bank = []
        if not bank:
            names.append(piece)
        bank.append(value)
    return names, [*sums, sum(bank)] if bank else sums


def test_words_are_those_of_the_released_loop(phantom):
    texts = ["Xylophone qwertz effusion.", "clear", "", TEXT * 3]
    fields = encode_units(phantom, texts, 16, "words")
    assert {name: (x.dtype, x.shape) for name, x in fields.items()} == {
        "ids": (np.int32, (4, 16)),
        "mask": (np.bool_, (4, 16)),
        "segment": (np.int32, (4, 16)),
    }
    values = np.arange(16) ** 2
    for ids, mask, segment in zip(*fields.values(), strict=True):
        pieces = [piece for piece, real in zip(phantom.tokens(ids), mask, strict=True) if real]
        names, sums = merged(pieces, values)
        assert segment[~mask].tolist() == [-1] * int((~mask).sum())
        assert [int(values[segment == word].sum()) for word in range(len(names))] == sums
        assert segment.max() == len(names) - 1
        assert (names[0], names[-1]) == ("[CLS]", "[SEP]")
    assert len(set(fields["segment"][0])) < fields["mask"][0].sum()  # some words have several pieces


def test_units_at_the_length_of_a_bucket(phantom):
    fields = encode_units(phantom, ["clear"], 64, "words", (8, 16))
    assert fields["segment"].tolist() == [[0, 1, 2, -1, -1, -1, -1, -1]]
    assert set(encode_units(phantom, ["clear"], 64)) == {"ids", "mask"}
    with pytest.raises(ValueError, match=r"Unknown units 'phrases' of text. Choose one of '', 'words', 'sentences'"):
        encode_units(phantom, ["clear"], 64, "phrases")
