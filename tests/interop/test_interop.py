import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from medvlp_jax.encoders.bert import Bert, BertConfig, BertForMaskedLM
from medvlp_jax.encoders.resnet import ResNet
from medvlp_jax.encoders.vit import ViT
from medvlp_jax.interop import (
    attention_from_torch,
    attention_to_torch,
    from_torch_names,
    layers_from_torch,
    layers_to_torch,
    load_bert,
    load_masked_lm,
    load_resnet,
    load_tensors,
    load_vit,
    save_bert,
    save_safetensors,
    to_torch_names,
)

CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=10,
)
RESNET = ResNet(block="bottleneck", stage_sizes=(1, 2), width=4)
VIT = ViT(width=8, layers=2, heads=2, hidden=12, patch=4, image=8)
IDS = jnp.zeros((1, 4), jnp.int32)
IMAGE = jnp.zeros((1, 8, 8, 3))
INITS = {
    "resnet": lambda key: RESNET.init(key, IMAGE, train=False),
    "bert": lambda key: Bert(CONFIG, pooler=True).init(key, IDS, IDS),
    "bert_masked_lm": lambda key: BertForMaskedLM(CONFIG).init(key, IDS, IDS),
    "vit_transformers": lambda key: VIT.clone(pooler=True).init(key, IMAGE),
    "vit_timm": lambda key: VIT.init(key, IMAGE),
}


def shapes(arch):
    return jax.eval_shape(INITS[arch], jax.random.key(0))


def random(arch, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes(arch))


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("arch", list(INITS))
def test_round_trip_is_exact_and_through_a_file(arch, tmp_path):
    variables = random(arch)
    tensors = to_torch_names(variables, arch)
    save_safetensors(tmp_path / "weights.safetensors", tensors)
    read = load_tensors(tmp_path / "weights.safetensors")
    assert set(read) == set(tensors)
    params, batch_stats = from_torch_names(read, arch, shapes(arch))
    assert_same(params, variables["params"])
    assert_same(batch_stats, variables.get("batch_stats", {}))
    again = to_torch_names({"params": params, "batch_stats": batch_stats}, arch)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_resnet_names_are_those_of_torchvision():
    tensors = to_torch_names(random("resnet"), "resnet")
    assert tensors["conv1.weight"].shape == (4, 3, 7, 7)
    assert tensors["layer1.0.downsample.0.weight"].shape == (16, 4, 1, 1)
    assert tensors["layer2.1.conv2.weight"].shape == (8, 8, 3, 3)
    assert tensors["layer2.0.bn3.num_batches_tracked"].dtype == np.int64
    assert "layer2.1.downsample.0.weight" not in tensors


def test_every_disagreement_is_listed_at_once():
    tensors = to_torch_names(random("bert"), "bert")
    tensors["pooler.dense.weight"] = tensors["pooler.dense.weight"][:-1]
    tensors["extra.weight"] = np.zeros(3)
    del tensors["embeddings.LayerNorm.bias"]
    with pytest.raises(ValueError, match="do not fit the bert model") as error:
        from_torch_names(tensors, "bert", shapes("bert"))
    message = str(error.value)
    assert "missing (1): embeddings.LayerNorm.bias" in message
    assert "unexpected (1): extra.weight" in message
    assert "pooler.dense.weight: (7, 8) in the file, (8, 8) in the model" in message
    with pytest.raises(ValueError, match=r"arch='swin' is unknown.*vit_timm"):
        from_torch_names(tensors, "swin", shapes("bert"))
    with pytest.raises(ValueError, match="Expected variables with 'params'"):
        to_torch_names(random("bert")["params"], "bert")


def test_a_reshapeable_tensor_of_another_shape_is_refused():
    tensors = to_torch_names(random("bert"), "bert")
    name = "encoder.layer.0.intermediate.dense.weight"
    tensors[name] = tensors[name].T
    with pytest.raises(ValueError, match="shape mismatch"):
        from_torch_names(tensors, "bert", shapes("bert"))


def test_old_and_prefixed_bert_spellings():
    variables = random("bert")
    tensors = {}
    for name, array in to_torch_names(variables, "bert").items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[f"bert.{old}"] = array
    tensors["bert.embeddings.position_ids"] = np.arange(10)[None]
    params, _ = from_torch_names(tensors, "bert", shapes("bert"))
    assert_same(params, variables["params"])
    tensors["pooler.dense.bias"] = tensors["bert.pooler.dense.bias"]
    with pytest.raises(ValueError, match=r"spellings of 'pooler.dense.bias'"):
        from_torch_names(tensors, "bert", shapes("bert"))


def test_stored_decoder_must_be_tied():
    variables = random("bert_masked_lm")
    tensors = to_torch_names(variables, "bert_masked_lm")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    params, _ = from_torch_names(tensors, "bert_masked_lm", shapes("bert_masked_lm"))
    assert_same(params, variables["params"])
    tensors["cls.predictions.decoder.weight"] += 1
    with pytest.raises(ValueError, match=r"unexpected.*decoder.weight"):
        from_torch_names(tensors, "bert_masked_lm", shapes("bert_masked_lm"))


def test_vit_names_in_memory_of_transformers_5():
    variables = random("vit_transformers")
    tensors = {}
    for name, array in to_torch_names(variables, "vit_transformers").items():
        for disk, memory in (
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("encoder.layer.", "layers."),
        ):
            name = name.replace(disk, memory)
        tensors[name] = array
    assert "layers.1.attention.q_proj.weight" in tensors
    params, _ = from_torch_names(tensors, "vit_transformers", shapes("vit_transformers"))
    assert_same(params, variables["params"])


def test_vit_spelling_is_recognised_and_classifiers_are_left_out(tmp_path):
    variables = random("vit_timm")
    tensors = to_torch_names(variables, "vit_timm")
    assert tensors["blocks.1.attn.qkv.weight"].shape == (24, 8)
    save_safetensors(tmp_path / "model.safetensors", tensors | {"head.weight": np.zeros((5, 8), np.float32)})
    assert_same(load_vit(tmp_path, VIT)["params"], variables["params"])
    tensors = to_torch_names(random("vit_transformers"), "vit_transformers")
    prefixed = {f"vit.{name}": array for name, array in tensors.items()} | {"classifier.bias": np.zeros(2, np.float32)}
    save_safetensors(tmp_path / "model.safetensors", prefixed)
    assert "pooler" not in load_vit(tmp_path, VIT)["params"]
    with pytest.raises(ValueError, match=r"position_embeddings: \(1, 5, 8\) in the file, \(1, 10, 8\)"):
        load_vit(tmp_path, VIT.clone(image=12))


def test_fused_qkv_is_query_then_key_then_value():
    variables = random("vit_timm")
    fused = to_torch_names(variables, "vit_timm")["blocks.0.attn.qkv.bias"]
    attention = variables["params"]["block_0"]["attention"]
    np.testing.assert_array_equal(
        fused, np.concatenate([attention[n]["bias"].ravel() for n in ("query", "key", "value")])
    )


def test_saved_bert_comes_back_and_opens_in_transformers(tmp_path):
    variables = random("bert_masked_lm")
    save_bert(tmp_path, CONFIG, variables)
    config, encoder = load_bert(tmp_path)
    assert config == CONFIG
    assert_same(encoder["params"], variables["params"]["bert"])
    assert_same(load_masked_lm(tmp_path)[1], variables)
    config, encoder = load_bert(tmp_path, num_layers=1)
    assert config.num_hidden_layers == 1
    assert "layer_1" not in encoder["params"]
    with pytest.raises(ValueError, match="num_layers=3"):
        load_bert(tmp_path, num_layers=3)

    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs, info = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids, mask = np.asarray([[1, 2, 3, 4]]), np.ones((1, 4), np.int32)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    ours = jax.jit(BertForMaskedLM(CONFIG).apply)(variables, ids, mask)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_resnet_with_its_classifier_loads_from_a_torch_file(tmp_path):
    torch = pytest.importorskip("torch")
    variables = random("resnet")
    state = {name: torch.from_numpy(array) for name, array in to_torch_names(variables, "resnet").items()}
    state |= {"fc.weight": torch.zeros(3, 32), "fc.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "resnet.pth")
    params, batch_stats = load_resnet(tmp_path / "resnet.pth", block="bottleneck", stage_sizes=(1, 2), width=4)
    assert_same(params, variables["params"])
    assert_same(batch_stats, variables["batch_stats"])


def test_pickles_and_damaged_files_are_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weight": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        load_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match="it is damaged"):
        load_tensors(tmp_path / "cut.pt", trust_pickle=True)
    torch.save({"epoch": 3}, tmp_path / "notes.pt")
    with pytest.raises(ValueError, match="no state_dict"):
        load_tensors(tmp_path / "notes.pt")
    torch.save({"half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "half.pt")
    assert load_tensors(tmp_path / "half.pt")["half"].dtype == ml_dtypes.bfloat16


def test_torch_file_without_torch_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="needs torch"):
        load_tensors(tmp_path / "model.pth")


def test_unreadable_places_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"looked for model\.safetensors"):
        load_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_tensors(tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'weights\.npz'.*\.safetensors"):
        load_tensors(tmp_path / "weights.npz")
    with pytest.raises(FileNotFoundError, match="neither an existing path nor a hub repository"):
        load_bert("no such name")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_bert(tmp_path)

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'owner/name'.*ConnectionError.*without network"):
        load_bert("owner/name")


def test_shards_are_joined_and_checked(tmp_path):
    first, second = {"a": np.arange(3.0)}, {"b": np.ones((2, 2), np.float32)}
    save_safetensors(tmp_path / "one.safetensors", first)
    save_safetensors(tmp_path / "two.safetensors", second)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}), encoding="utf-8")
    read = load_tensors(tmp_path)
    np.testing.assert_array_equal(read["a"], first["a"])
    np.testing.assert_array_equal(read["b"], second["b"])
    index.write_text(json.dumps({"weight_map": {"c": "one.safetensors"}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"shards lack: \['c'\]"):
        load_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="outside its own folder"):
        load_tensors(tmp_path)


def test_multihead_attention_round_trip_and_numbers():
    torch = pytest.importorskip("torch")
    from medvlp_jax.encoders.transformer import SelfAttention

    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_bias.data.normal_()
    tensors = {f"attention.{name}": tensor.numpy() for name, tensor in theirs.state_dict().items()}
    tree = attention_from_torch(tensors, "attention.", heads=2)
    assert tree["query"]["kernel"].shape == (8, 2, 4)
    back = attention_to_torch(tree, "attention.")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    with torch.no_grad():
        expected, weights = theirs(*[torch.from_numpy(x)] * 3, average_attn_weights=False)
    ours, ours_weights = SelfAttention(heads=2).apply({"params": tree}, x)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours_weights, weights.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="does not fit heads=3"):
        attention_from_torch(tensors, "attention.", heads=3)


def test_projection_head_round_trip_and_numbers():
    torch = pytest.importorskip("torch")
    from medvlp_jax.layers.heads import ProjectionHead

    nn = torch.nn
    theirs = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False)
    )
    theirs(torch.randn(7, 6))
    layers = {
        "linear1": ("mlp.0", "linear"),
        "norm1": ("mlp.1", "batch_norm"),
        "linear2": ("mlp.3", "linear"),
        "norm2": ("mlp.4", "batch_norm"),
    }
    tensors = {f"mlp.{name}": tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params, batch_stats = layers_from_torch(tensors, layers)
    assert "norm2" not in params
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    ours = ProjectionHead(5, 4, {}).apply({"params": params, "batch_stats": batch_stats}, x, train=False)
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs.eval()(torch.from_numpy(x)).numpy(), atol=1e-6)
    back = layers_to_torch(params, batch_stats, layers)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(back[name], tensor)
    with pytest.raises(ValueError, match=r"'mlp\.1\.running_var' is missing"):
        layers_from_torch({k: v for k, v in tensors.items() if k != "mlp.1.running_var"}, layers)
    with pytest.raises(ValueError, match="kind 'rnn' is unknown"):
        layers_from_torch(tensors, {"cell": ("mlp.0", "rnn")})
