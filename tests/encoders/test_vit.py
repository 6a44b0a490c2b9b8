import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_weights as ref
from golden import GOLDEN, assert_golden

from medvlp_jax.encoders.vit import ViT, resize_positions, vit
from medvlp_jax.interop import from_torch_names, load_vit, to_torch_names

MODEL = ViT(**ref.VIT, epsilon=1e-12, pooler=True, blocks=True)
APPLY = jax.jit(MODEL.apply)
IMAGE = ref.image(2, ref.VIT["image"])


@pytest.fixture(scope="module")
def variables():
    like = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGE)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    names = {name: array.shape for name, array in to_torch_names(zeros, "vit_transformers").items()}
    params, _ = from_torch_names(ref.fill(names), "vit_transformers", like)
    return {"params": params}


def test_levels_match_transformers_golden_values(variables):
    levels = APPLY(variables, IMAGE)
    patches = levels["patches"].reshape(2, -1, MODEL.width)
    assert_golden(np.concatenate([levels["cls"][:, None], patches], 1), GOLDEN["vit_last"])
    assert_golden(levels["pooled"], GOLDEN["vit_pooled"])
    assert levels["block2"].shape == (2, 17, MODEL.width)
    assert levels["patches"].shape == (2, 4, 4, MODEL.width)


def test_levels_match_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
    )
    theirs = transformers.ViTModel(config).eval()
    theirs.embeddings.cls_token.data.normal_()
    theirs.save_pretrained(tmp_path)
    levels = APPLY(load_vit(tmp_path, MODEL), IMAGE)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IMAGE).permute(0, 3, 1, 2))
    np.testing.assert_allclose(levels["cls"], expected.last_hidden_state[:, 0].numpy(), atol=5e-6)
    np.testing.assert_allclose(
        levels["patches"].reshape(2, 16, 32), expected.last_hidden_state[:, 1:].numpy(), atol=5e-6
    )
    np.testing.assert_allclose(levels["pooled"], expected.pooler_output.numpy(), atol=5e-6)


def test_what_patches_add_to_the_class_token(variables):
    model = MODEL.clone(attention=True)
    levels = jax.jit(model.apply)(variables, IMAGE)
    part_NxPxE = np.asarray(levels["class_parts"]).reshape(2, 16, MODEL.width)
    np.testing.assert_allclose(part_NxPxE.mean(axis=1), levels["cls"], atol=1e-5)
    assert "class_parts" not in jax.eval_shape(lambda v: model.apply(v, IMAGE, train=True), variables)

    # In float64: how the class token moves when it sees a little more of one patch, its attention as it is.
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    block = params[f"block_{MODEL.layers - 1}"]

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def gelu(x):
        return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))

    def class_token(seen_NxE):
        x = before[:, 0] + seen_NxE + block["attention"]["out"]["bias"]
        up, down = block["feed_forward"]["up"], block["feed_forward"]["down"]
        h = gelu(norm(x, block["feed_forward_norm"]) @ up["kernel"] + up["bias"])
        return norm(x + h @ down["kernel"] + down["bias"], params["norm"])

    before = np.asarray(levels[f"block{MODEL.layers - 1}"], np.float64)
    value = np.einsum("nle,ehd->nlhd", norm(before, block["attention_norm"]), block["attention"]["value"]["kernel"])
    value += block["attention"]["value"]["bias"]
    paid = np.asarray(levels["attention"], np.float64)[:, :, 0]
    seen_NxLxE = np.einsum("nhl,nlhd,hde->nle", paid, value, block["attention"]["out"]["kernel"])
    whole = seen_NxLxE.sum(axis=1)
    np.testing.assert_allclose(class_token(whole), levels["cls"], atol=1e-5)
    more = [
        (class_token(whole + 1e-5 * c) - class_token(whole - 1e-5 * c)) / 2e-5 for c in np.moveaxis(seen_NxLxE, 1, 0)
    ]
    moved_NxPxE = np.stack(more[1:], axis=1)
    expected = class_token(whole)[:, None] + 16 * moved_NxPxE - moved_NxPxE.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(part_NxPxE, expected, atol=2e-5 * np.abs(expected).max())


def test_grey_image_equals_three_copies(variables):
    grey = IMAGE[..., :1]
    direct = APPLY(variables, grey)["cls"]
    copied = APPLY(variables, np.repeat(grey, 3, -1))["cls"]
    np.testing.assert_allclose(direct, copied, atol=1e-5)


def test_grey_image_with_colours_equals_the_channels_made_of_it(variables):
    grey, colours = IMAGE[..., :1], ((1.0, 0.0), (1.1, 0.2), (0.8, -0.5))
    direct = jax.jit(MODEL.clone(colours=colours).apply)(variables, grey)["cls"]
    made = APPLY(variables, grey * np.float32(colours)[:, 0] + np.float32(colours)[:, 1])["cls"]
    np.testing.assert_allclose(direct, made, atol=1e-5)


def test_remat_keeps_the_gradients(variables):
    def gradients(model):
        return jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, IMAGE)["cls"] ** 2)))(variables)

    shallow = MODEL.clone(layers=1)
    plain, remat = gradients(shallow), gradients(shallow.clone(remat=True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("name", "count"), [("S/16", 21_665_664), ("B/16", 85_798_656)])
def test_parameter_count_is_that_of_timm_without_classifier(name, count):
    model = vit(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_positions_resize_smoothly_and_keep_the_class_token():
    rows = np.linspace(0, 1, 4)
    table = np.concatenate([np.full((1, 1, 1), 9.0), np.repeat(rows, 4).reshape(1, 16, 1)], 1).astype(np.float32)
    larger = np.asarray(resize_positions(table, 8))
    assert larger.shape == (1, 65, 1)
    assert larger[0, 0, 0] == 9
    grid = larger[0, 1:, 0].reshape(8, 8)
    np.testing.assert_allclose(grid, grid[:, :1].repeat(8, 1), atol=1e-6)
    np.testing.assert_allclose(np.diff(grid[2:6, 0]), 1 / 6, atol=2e-2)
    np.testing.assert_array_equal(resize_positions(table, 4), table)
    with pytest.raises(ValueError, match=r"side\*side"):
        resize_positions(table[:, :-1], 8)


def test_wrong_sizes_and_names_are_refused(variables):
    with pytest.raises(ValueError, match=r"32x32.*got 40x40.*image=40"):
        MODEL.apply(variables, np.zeros((1, 40, 40, 3), np.float32))
    with pytest.raises(ValueError, match=r"'X/16' is unknown.*Ti, S, B, L"):
        vit("X/16")
