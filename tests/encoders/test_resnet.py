import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_weights as ref
from golden import GOLDEN, assert_golden

from medvlp_jax.encoders import resnet
from medvlp_jax.encoders.resnet import ResNet, max_pool_3x3, space_to_depth_conv
from medvlp_jax.interop import from_torch_names, to_torch_names
from medvlp_jax.layers.norm import BatchNorm

KEY = jax.random.key(0, impl="rbg")  # compiles several times faster than the default on CPU
STAGES = ("stage1", "stage2", "stage3", "stage4")


def shapes_of(model, side=32, channels=3):
    image = jnp.zeros((1, side, side, channels))
    return jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))


def initialized(model, side):
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, side, side, 1)), train=False))(KEY)


def filled(model):
    """Variables of a model from reference weights."""
    like = shapes_of(model)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    names = {name: array.shape for name, array in to_torch_names(zeros, "resnet").items()}
    params, batch_stats = from_torch_names(ref.fill(names), "resnet", like)
    return {"params": params, "batch_stats": batch_stats}


def forward(model, variables, image, train):
    apply = jax.jit(
        lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"] if train else False),
    )
    return apply(variables, jnp.asarray(image))


@pytest.mark.parametrize(("depth", "count"), [("50", 23_508_032), ("18", 11_176_512)])
def test_parameter_count_is_that_of_torchvision_without_classifier(depth, count):
    params = shapes_of(ResNet(depth=depth))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("name", list(ref.RESNETS))
def test_stages_match_torch_golden_values(name):
    model = ResNet(**ref.RESNETS[name])
    variables = filled(model)
    levels = forward(model, variables, ref.image(3, 64), train=False)
    for stage, golden in zip(STAGES, GOLDEN[f"resnet_{name}_eval"], strict=True):
        assert_golden(levels[stage], golden)
    np.testing.assert_allclose(levels["pooled"], levels["stage4"].mean((1, 2)), rtol=1e-5, atol=1e-5)
    levels, updates = forward(model, variables, ref.image(3, 64), train=True)
    for stage, golden in zip(STAGES, GOLDEN[f"resnet_{name}_train"], strict=True):
        assert_golden(levels[stage], golden, tolerance=1e-4)
    running = updates["batch_stats"]["stage4_block0"]["norm1"]["var"]
    assert_golden(running, GOLDEN[f"resnet_{name}_running_var"], tolerance=1e-4)


@pytest.mark.parametrize("name", list(ref.RESNETS))
def test_training_gradients_match_torch(name):
    torch = pytest.importorskip("torch")
    from torch_resnet import TorchResNet

    fields = ref.RESNETS[name]
    model, torch_model = ResNet(**fields), TorchResNet(fields["stage_sizes"], fields["width"], name == "bottleneck")
    variables = filled(model)
    state = {key: torch.from_numpy(value) for key, value in to_torch_names(variables, "resnet").items()}
    torch_model.load_state_dict(state, strict=True)
    image = ref.image(4, 64)

    stages = torch_model.train()(torch.from_numpy(image).permute(0, 3, 1, 2))
    sum((stage**2).mean() for stage in stages).backward()

    def loss(params):
        levels, updates = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return sum(jnp.mean(levels[stage] ** 2) for stage in STAGES), updates

    gradients, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    ours = to_torch_names({"params": gradients}, "resnet")
    for key, parameter in torch_model.named_parameters():
        theirs = parameter.grad.numpy()
        np.testing.assert_allclose(ours[key], theirs, atol=2e-3 * np.abs(theirs).max(), err_msg=key)
    running = to_torch_names({"batch_stats": updates["batch_stats"]}, "resnet")
    for key, buffer in torch_model.named_buffers():
        if "running" in key:
            np.testing.assert_allclose(running[key], buffer.numpy(), rtol=1e-4, atol=1e-4, err_msg=key)


def test_stride4_stem_is_a_7x7_convolution_without_pooling():
    model = ResNet(stem="stride4", block="basic", stage_sizes=(1,), width=4)
    image = ref.image(2, 32, 1)
    kernel = jax.random.normal(jax.random.key(0), (7, 7, 1, 4))
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(image, kernel, (4, 4), [(3, 3)] * 2, dimension_numbers=dimensions)
    np.testing.assert_allclose(space_to_depth_conv(image, kernel, 4), expected, atol=1e-5)
    assert forward(model, filled(model), image, train=False)["stage1"].shape == (2, 8, 8, 4)


def test_grey_image_equals_three_copies_and_space_to_depth_equals_the_stem():
    model = ResNet(**ref.RESNETS["basic"])
    variables = filled(model)
    grey = ref.image(2, 32, 1)
    copied = forward(model, variables, np.repeat(grey, 3, -1), train=False)
    direct = forward(model, variables, grey, train=False)
    blocks = forward(model.clone(stem="space_to_depth"), variables, grey, train=False)
    for stage in STAGES:
        scale = np.abs(copied[stage]).max()
        np.testing.assert_allclose(direct[stage], copied[stage], atol=1e-5 * scale)
        np.testing.assert_allclose(blocks[stage], copied[stage], atol=1e-5 * scale)


COLOURS = ((1.0, 0.0), (1.1, 0.2), (0.8, -0.5))


@pytest.mark.parametrize("stem", ["imagenet", "space_to_depth", "stride4", "small"])
def test_grey_image_with_colours_equals_the_channels_made_of_it(stem):
    model = ResNet(**{**ref.RESNETS["basic"], "stem": stem, "stage_sizes": (1,)}, colours=COLOURS)
    variables = filled(model)
    grey = ref.image(2, 32, 1)
    made = forward(model, variables, grey * np.float32(COLOURS)[:, 0] + np.float32(COLOURS)[:, 1], train=False)
    direct = forward(model, variables, grey, train=False)
    np.testing.assert_allclose(direct["stage1"], made["stage1"], atol=1e-5 * np.abs(made["stage1"]).max())


def test_statistics_of_other_channels_than_the_trunk_has():
    with pytest.raises(ValueError, match=r"in_channels=1, but .* of 3 channels\. Use as many in image\.mean"):
        shapes_of(ResNet(in_channels=1, colours=COLOURS), channels=1)
    with pytest.raises(ValueError, match="ResNet takes images with 1 or 3 channels, got shape"):
        shapes_of(ResNet(colours=COLOURS), channels=2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 6, 3), (2, 7, 7, 2), (2, 16, 16, 2)])
def test_max_pool_equals_reduce_window_with_its_gradient(shape):
    x = jnp.asarray(ref.uniform("pool", shape))

    def reference(x):
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
        )

    np.testing.assert_array_equal(max_pool_3x3(x), reference(x))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(x) for f in (max_pool_3x3, reference))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_remat_keeps_the_gradients():
    model = ResNet(stage_sizes=(1,), block="basic", width=4, stem="small")
    image = ref.image(2, 8)
    variables = initialized(model, 8)

    def gradients(model):
        def loss(params):
            levels, _ = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return jnp.mean(levels["stage1"] ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])

    for plain, remat in zip(
        jax.tree.leaves(gradients(model)), jax.tree.leaves(gradients(model.clone(remat=True))), strict=True
    ):
        np.testing.assert_allclose(plain, remat, atol=1e-5 * float(np.abs(plain).max()) + 1e-8)


def test_levels_follow_stem_strides_widths_and_dtype():
    model = ResNet(
        stem="small", block="basic", stage_sizes=(1, 1, 1), widths=(4, 6, 8), strides=(1, 2, 1), dtype=jnp.bfloat16
    )
    variables = initialized(model, 16)
    levels = forward(model, variables, np.ones((2, 16, 16, 1), np.float32), train=False)
    assert {name: level.shape for name, level in levels.items()} == {
        "stage1": (2, 16, 16, 4),
        "stage2": (2, 8, 8, 6),
        "stage3": (2, 8, 8, 8),
        "pooled": (2, 8),
    }
    assert levels["stage3"].dtype == jnp.bfloat16
    assert levels["pooled"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_zero_initialised_last_norm_makes_blocks_start_as_the_shortcut():
    model = ResNet(stem="small", block="bottleneck", stage_sizes=(2,), width=4, zero_init_last_bn=True)
    variables = initialized(model, 8)
    assert np.all(np.asarray(variables["params"]["stage1_block1"]["norm3"]["scale"]) == 0)
    assert np.all(np.asarray(variables["params"]["stage1_block1"]["norm1"]["scale"]) == 1)


def test_grouped_norm_makes_groups_independent_of_each_other():
    model = ResNet(stem="small", block="basic", stage_sizes=(1,), width=4, bn_scope="group", bn_group_size=2)
    variables = initialized(model, 8)
    image = ref.image(4, 8, 1)
    both, _ = forward(model, variables, image, train=True)
    first, _ = forward(model, variables, image[:2], train=True)
    np.testing.assert_allclose(both["stage1"][:2], first["stage1"], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"depth": "51"}, (1, 32, 32, 3), "depth='51'.*18, 34, 50"),
        ({"stem": "big"}, (1, 32, 32, 3), "stem='big'.*space_to_depth"),
        ({"block": "wide"}, (1, 32, 32, 3), "block='wide'"),
        ({"widths": (1, 2)}, (1, 32, 32, 3), "lengths differ"),
        ({}, (1, 32, 32, 2), "1 or 3 channels"),
        ({"stem": "space_to_depth"}, (1, 33, 32, 1), "divisible by 2, got 33x32"),
        ({"stem": "stride4"}, (1, 34, 32, 1), "divisible by 4, got 34x32"),
    ],
)
def test_bad_fields_and_images_are_named(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: ResNet(**fields).init(key, jnp.zeros(shape), train=False), jax.random.key(0))


def test_a_block_in_bfloat16_training_is_as_exact_as_its_plain_form(monkeypatch):
    """Its last convolution and the shortcut, normalised by the moments of their input, against float32."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6, 6, 16)), jnp.float32)

    def features_and_gradients(dtype):
        norm = functools.partial(BatchNorm, dtype=dtype)
        block = resnet.Bottleneck(features=8, stride=1, norm=norm, dtype=dtype)
        variables = block.init(KEY, x, True)

        def loss(params):
            y, stats = block.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.sum(jnp.square(y)), (y, stats)

        gradients, (y, stats) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        return jax.tree.map(lambda x: np.asarray(x, np.float32), (y, gradients, stats))

    def worst(ours):
        scale = jax.tree.map(lambda x: np.abs(x).max() + 1e-6, exact)
        return max(jax.tree.leaves(jax.tree.map(lambda a, b, s: np.abs(a - b).max() / s, ours, exact, scale)))

    exact = features_and_gradients(jnp.float32)
    by_moments = features_and_gradients(jnp.bfloat16)

    def plain_conv_norm(conv, norm, x, train, shortcut=None):
        return norm(conv(x), train=train, shortcut=shortcut)

    monkeypatch.setattr(resnet, "_conv_norm", plain_conv_norm)
    plain = features_and_gradients(jnp.bfloat16)
    assert worst(by_moments) < 1.5 * worst(plain) < 0.2
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (by_moments, plain)), strict=True))
