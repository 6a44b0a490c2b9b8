"""Operation strings: parsing, errors that help, decoding, and the fields of an example."""

import cv2
import numpy as np
import pytest

from medvlp_jax.data import preprocess, tokenizer
from medvlp_jax.data.preprocess import Op, build, parse


def rng():
    return np.random.default_rng(0)


def picture(height=40, width=30):
    rows, columns = np.mgrid[:height, :width]
    return (20 + 2 * rows + columns).astype(np.uint8)


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg(image):
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def record(**changes):
    fields = {
        "image": png(picture()),
        "findings": "The lungs are  clear.",
        "impression": "",
        "report": "",
        "has_findings": np.bool_(True),
        "has_impression": np.bool_(False),
        "sentences": ["The lungs are clear."],
        "labels": np.full(14, -2, np.int8),
        "view": "PA",
        "patient_id": np.int64(-3),
        "study_id": np.int64(1 << 40 | 5),
        "lung_mask": b"",
        "index": np.int64(7),
    }
    return {**fields, **changes}


class Words:
    """A tokenizer of white space, for tests."""

    def encode(self, texts, max_len):
        ids, mask = np.zeros((len(texts), max_len), np.int32), np.zeros((len(texts), max_len), np.bool_)
        for i, text in enumerate(texts):
            words = text.split()[:max_len]
            ids[i, : len(words)], mask[i, : len(words)] = [len(word) for word in words], True
        return ids, mask


class Vectors:
    def lookup(self, text):
        return np.full(4, len(text), np.float32)


def test_parse_reads_names_and_literals():
    ops = parse("decode | views(2, size=64, zoom=(0.9, 1.1)) |sections('mask')|keep()")
    assert ops == [
        Op("decode"),
        Op("views", (2,), (("size", 64), ("zoom", (0.9, 1.1)))),
        Op("sections", ("mask",)),
        Op("keep"),
    ]
    assert parse("|".join(map(str, ops))) == ops


@pytest.mark.parametrize(
    ("string", "words"),
    [
        ("decod", "Unknown operation 'decod'. Did you mean 'decode'\\? Known: .*cached_text, center"),
        ("decode|warp(3)", "Unknown operation 'warp'.*Known"),
        ("views(2, siz=3)", "views has no argument 'siz'. Did you mean 'size'\\?"),
        ("views(2, colour=1)", "views has no argument 'colour'. .*autocontrast"),
        ("decode(3)", "too many positional arguments. Arguments: none"),
        ("resize", "missing a required argument: 'size'"),
        ("tokenize(256, tokenizer=3)", "no argument 'tokenizer'"),
        ("views(n)", "'views\\(n\\)' must be literals"),
        ("views(**{'size': 3})", "must be literals"),
        ("decode||keep", "Cannot read the operations"),
        ("decode|", "Cannot read the operations"),
        ("", "Cannot read the operations"),
        ("decode & keep", "is not an operation"),
        ("'decode'", "is not an operation"),
    ],
)
def test_parse_errors_name_the_remedy(string, words):
    with pytest.raises(ValueError, match=words):
        parse(string)


@pytest.mark.parametrize(
    ("string", "words"),
    [
        ("views(0)", "views\\(0\\): count=0"),
        ("views(2, rotate=400)", "rotate=400"),
        ("center(64, crop_from=32)", "crop_from=32"),
        ("resize(0)", "size=0"),
        ("resize(8, fit='crop')", "crop"),
        ("pad_to_square(300)", "value=300"),
        ("sections('silence')", "silence.*mask"),
        ("tokenize(256)", "no tokenizer was given"),
        ("cached_text", "no text cache was given"),
        ("keep(3)", "quoted"),
    ],
)
def test_bad_values_raise_before_the_first_record(string, words):
    with pytest.raises(ValueError, match=words):
        build(string)


def test_registering_a_name_twice_raises():
    with pytest.raises(ValueError, match="'decode' is registered twice"):
        preprocess.register("decode")(lambda: None)


def test_a_registered_operation_works_in_strings(monkeypatch):
    monkeypatch.setattr(preprocess, "_OPS", dict(preprocess._OPS))

    @preprocess.register("negative")
    def negative(top=255):
        return lambda example, rng: {**example, "image": (top - example["image"]).astype(np.uint8)}

    assert "negative" in preprocess.known_ops()
    out = build("decode|negative(top=200)|keep('image')")(record(), rng())
    np.testing.assert_array_equal(out["image"][0, ..., 0], 200 - picture())


@pytest.mark.parametrize("encode", [png, jpeg])
def test_decode_gives_grey_pixels(encode):
    decoded = preprocess.decode_grey(encode(picture()))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - picture()).max() <= (0 if encode is png else 3)
    colour = preprocess.decode_grey(encode(cv2.cvtColor(picture(), cv2.COLOR_GRAY2BGR)))
    assert colour.shape == (40, 30)


def test_decode_spreads_16_bit_without_wrapping():
    deep = np.linspace(0, 4095, 600).reshape(20, 30).astype(np.uint16)  # twelve bits in a 16-bit file
    decoded = preprocess.decode_grey(png(deep))
    assert (decoded.min(), decoded.max()) == (0, 255)
    assert (np.diff(decoded.ravel().astype(int)) >= 0).all()
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize(
    "data",
    [b"", b"no image at all", png(picture())[:60], jpeg(picture())[:-200], png(picture())[:40] + b"\0" * 400],
    ids=["empty", "text", "cut png", "cut jpeg", "overwritten png"],
)
def test_damaged_image_tells_its_size_only(data):
    with pytest.raises(ValueError, match=f"the image \\({len(data)} bytes\\) is damaged or neither PNG nor JPEG"):
        build("decode")(record(image=data), rng())


def test_order_of_operations_is_checked():
    with pytest.raises(ValueError, match="views needs one decoded image: put it after decode"):
        build("views(2)")(record(), rng())
    with pytest.raises(ValueError, match="decode needs encoded image bytes"):
        build("decode|decode")(record(), rng())
    with pytest.raises(ValueError, match="resize needs one decoded image"):
        build("decode|center(8)|resize(4)")(record(), rng())


def test_whole_example_has_the_batch_fields():
    string = "decode|views(3, size=16, hflip=0.5)|sections('mask')|tokenize(6)"
    example = build(string, tokenizer=Words())(record(), rng())
    shapes = {name: (value.shape, value.dtype.name) for name, value in example.items()}
    assert shapes == {
        "image": ((3, 16, 16, 1), "uint8"),
        "findings_ids": ((6,), "int32"),
        "findings_mask": ((6,), "bool"),
        "findings_hash": ((), "int32"),
        "impression_ids": ((6,), "int32"),
        "impression_mask": ((6,), "bool"),
        "impression_hash": ((), "int32"),
        "has_findings": ((), "bool"),
        "has_impression": ((), "bool"),
        "labels": ((14,), "int8"),
        "patient_hash": ((), "int32"),
        "study_hash": ((), "int32"),
        "index": ((), "int64"),
    }
    assert set(example) <= set(preprocess.BATCH_FIELDS)
    assert example["findings_mask"].sum() == 4
    assert example["has_findings"]
    assert not example["has_impression"]
    assert example["patient_hash"] >= 0
    assert example["study_hash"] == 5


def test_cached_vectors_replace_ids():
    example = build("sections('mask')|cached_text", text_cache=Vectors())(record(), rng())
    np.testing.assert_array_equal(example["findings_embedding"], np.full(4, len(record()["findings"]), np.float32))
    assert "findings_ids" not in example
    assert "image" not in example  # never decoded


def test_section_policies_decide_what_is_encoded():
    tokenize = build("sections('space')|tokenize(6)", tokenizer=Words())(record(), rng())
    assert tokenize["has_impression"]
    longest = build("sections('longest')|tokenize(6)", tokenizer=Words())(record(), rng())
    assert longest["impression_hash"] == longest["findings_hash"]


def test_the_report_is_a_text_of_its_own():
    parts = "report=('impression', 'findings')"
    both = record(findings="Clear lungs.", impression="Normal.")
    example = build(f"sections('mask', {parts})|tokenize(6, 'report')", tokenizer=Words())(both, rng())
    assert example["report_ids"].tolist() == [7, 5, 6, 0, 0, 0]  # Normal. Clear lungs.
    assert {name for name in example if name.endswith("_ids")} == {"report_ids"}
    assert example["has_report"]
    assert set(example) <= set(preprocess.BATCH_FIELDS)
    one = build(f"sections('mask', {parts})|cached_text('report')", text_cache=Vectors())(record(), rng())
    assert one["report_embedding"][0] == len("The lungs are  clear.")
    none = build(f"sections('mask', {parts})")(record(findings=""), rng())
    assert not none["has_report"]
    written = build("sections('mask', report=('report',))|sentence('report')|keep('report')")
    assert written(record(report="FINDINGS: clear."), rng()) == {"report": "FINDINGS: clear."}
    assert "report_hash" not in build("sections('mask')")(both, rng())
    with pytest.raises(ValueError, match=r"Unknown part 'history' of a report. Choose of findings, impression, report"):
        build("sections('mask', report=('history',))")
    with pytest.raises(ValueError, match=r"unknown text 'reprot'. Choose of findings, impression, report"):
        build("sentence('reprot')")


def test_words_of_pieces_reach_the_batch():
    string = "decode|center(16)|sections('mask')|tokenize(8, 'impression', units='words')"
    example = build(string, tokenizer=tokenizer.load("phantom"))(record(), rng())
    assert example["impression_segment"].dtype == np.int32
    assert example["impression_segment"].shape == example["impression_ids"].shape == (8,)
    assert example["impression_segment"][0] == 0
    with pytest.raises(ValueError, match="Unknown units 'phrases'"):
        build("tokenize(8, units='phrases')", tokenizer=Words())


def test_a_rule_of_sentences_cleans_whole_texts():
    run = build("sections('mask')|sentences('findings', 'impression', rule='gloria')|keep()")
    text = "1. Heart: LARGE.\nStable. No \u00e9ffusion"
    example = run(record(findings=text, impression="..."), rng())
    assert (example["has_findings"], example["has_impression"]) == (True, False)
    kept = build("sections('mask')|sentences('findings', rule='gloria')|keep('findings')")
    assert kept(record(findings=text), rng())["findings"] == "heart large no ffusion"
    assert kept(record(findings="Stable."), rng())["findings"] == "stable"  # too short for the rule, but all there is
    with pytest.raises(ValueError, match="Unknown sentence rule 'long'"):
        build("sentences('findings', rule='long')")


def test_a_sentence_is_drawn_anew():
    run = build("sections('mask', report=('findings', 'impression'))|sentence('report')|keep('report', 'has_report')")
    several = record(findings="Heart is normal. Lungs are clear.", impression="No effusion.")
    drawn = [run(several, np.random.default_rng(seed))["report"] for seed in range(60)]
    assert set(drawn) == {"Heart is normal.", "Lungs are clear.", "No effusion."}
    assert min(drawn.count(text) for text in set(drawn)) > 8
    empty = run(record(findings=" "), rng())
    assert (empty["report"], empty["has_report"]) == ("", False)


def test_swapped_sentences_are_the_same_text():
    texts = "sections('mask', report=('findings', 'impression'))"
    run = build(f"{texts}|swap_sentences('report')|keep('report', 'report_hash', 'has_report')")
    several = record(findings="Heart is normal. Lungs are clear. See p.m. film.", impression="1. No effusion.")
    found = [run(several, np.random.default_rng(seed)) for seed in range(300)]
    sentences = ["Heart is normal.", "Lungs are clear.", "See p.m. film.", "No effusion."]
    orders = [preprocess.split_sentences(example["report"]) for example in found]
    assert all(sorted(order) == sorted(sentences) for order in orders)
    # No swap with probability 0.4; a swap takes the same place twice with probability 1/4.
    left_alone = sum(order == sentences for order in orders) / 300
    assert 0.38 < left_alone < 0.58
    assert len({tuple(order) for order in orders}) > 8
    # Swapping makes no other report of it.
    plain = build(f"{texts}|keep('report_hash')")(several, rng())
    assert {int(example["report_hash"]) for example in found} == {int(plain["report_hash"])}
    assert run(record(findings=""), rng())["report"] == ""
    with pytest.raises(ValueError, match="p=0 must be a probability above 0"):
        build("swap_sentences('report', p=0)")


def test_equal_text_has_equal_hash():
    run = build("sections('mask')")
    one = run(record(findings="Lungs\n are CLEAR."), rng())
    two = run(record(findings=" lungs are clear. "), rng())
    other = run(record(findings="lungs are not clear."), rng())
    assert one["findings_hash"] == two["findings_hash"] != other["findings_hash"]


def test_keep_selects_and_names_what_is_missing():
    example = build("decode|center(8)|keep('image', 'view')")(record(), rng())
    assert set(example) == {"image", "view"}
    assert example["image"].shape == (1, 8, 8, 1)
    with pytest.raises(ValueError, match=r"no such field here\. Did you mean 'labels'"):
        build("keep('label')")(record(), rng())


def test_image_operations():
    image = np.zeros((50, 60), np.uint8)
    image[10:40, 5:50] = 180
    steps = build("decode|crop_border|pad_to_square(7)|keep('image')")(record(image=png(image)), rng())
    square = steps["image"][0, ..., 0]
    assert square.shape == (45, 45)
    assert (square[:7] == 7).all()
    assert (square[7:37] == 180).all()
    for fit, shape in [("pad", (20, 20)), ("squash", (20, 20)), ("shorter", (20, 24))]:
        out = build(f"decode|resize(20, {fit!r})")(record(image=png(image)), rng())
        assert out["image"].shape == (1, *shape, 1)


def test_record_is_left_alone_and_views_differ():
    source = record()
    run = build("decode|views(2, size=24, crop_from=40, rotate=20)|sections('space')")
    one, two = run(source, np.random.default_rng(1)), run(source, np.random.default_rng(1))
    np.testing.assert_array_equal(one["image"], two["image"])
    assert (one["image"][0] != one["image"][1]).any()
    assert isinstance(source["image"], bytes)
    assert source["impression"] == ""
