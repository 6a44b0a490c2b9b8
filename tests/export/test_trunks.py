"""Image encoders of any shape in PyTorch, under the names of torchvision, timm and transformers."""

import jax
import numpy as np
import pytest
import tiny
from encoders import reference_weights

from medvlp_jax.encoders.resnet import ResNet
from medvlp_jax.encoders.vit import ViT
from medvlp_jax.export import check, parts
from medvlp_jax.interop import save_safetensors, to_torch_names

TRUNKS = {
    "imagenet": ResNet(block="bottleneck", stage_sizes=(1, 2), width=4),
    "space_to_depth": ResNet(stage_sizes=(1, 1), block="basic", width=4, stem="space_to_depth", strides=(1, 1)),
    "stride4, grey": ResNet(
        stage_sizes=(1, 1, 1), block="basic", widths=(4, 6, 6), width=8, stem="stride4", in_channels=1
    ),
    "small": ResNet(depth="18", stage_sizes=(1, 1), width=4, stem="small"),
    "vit": ViT(width=8, layers=2, heads=2, hidden=12, patch=8, image=32),
    "vit, pooler": ViT(width=8, layers=2, heads=2, hidden=12, patch=8, image=32, pooler=True, epsilon=1e-12),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_trunks_of_any_shape_open_in_torch(name, tmp_path):
    torch = pytest.importorskip("torch")
    trunk = TRUNKS[name]
    image = reference_weights.image(2, 32, trunk.in_channels)
    options = {} if isinstance(trunk, ViT) else {"train": False}
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), image, **options))
    variables = tiny.fill(shapes)
    tensors, described = to_torch_names(variables, parts.trunk_arch(trunk)), parts.describe_trunk(trunk)
    ours = trunk.apply(variables, image, **options)
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2)
    if described["kind"] == "vit_transformers":
        transformers = pytest.importorskip("transformers")
        save_safetensors(tmp_path / "model.safetensors", tensors)
        fields = {k: v for k, v in described.items() if k != "kind"}
        transformers.ViTConfig(**fields, architectures=["ViTModel"]).save_pretrained(tmp_path)
        model, report = transformers.ViTModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        with torch.no_grad():
            theirs = {"pooled": model.eval()(pixels).pooler_output}
    else:
        modeling = check.loader(tiny.REPOSITORY / "medvlp_jax" / "assets")
        model = modeling.build_trunk(described)
        state = {key: torch.from_numpy(np.array(array)) for key, array in tensors.items()}
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            theirs = model.eval()(pixels)
    for level, value in theirs.items():
        value = value.permute(0, 2, 3, 1) if level.startswith("stage") else value
        assert check.relative_difference(np.asarray(ours[level]), value.numpy()) < 1e-5, level


def test_names_and_shapes_are_those_of_torchvision_resnet50():
    pytest.importorskip("torch")
    from encoders.torch_resnet import TorchResNet

    trunk = ResNet(depth="50")
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    ours = {name: array.shape for name, array in to_torch_names(zeros, "resnet").items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in TorchResNet().state_dict().items()}
    assert ours == theirs
    assert len(ours) == 318  # of the 320 in torchvision's resnet50 all but fc.weight and fc.bias


def test_methods_and_trunks_without_names_are_refused():
    with pytest.raises(ValueError, match=r"'moco' cannot be exported yet. Known: clip, composed, convirt, gloria"):
        parts.known("moco")
    with pytest.raises(ValueError, match="no PyTorch names yet"):
        parts.trunk_arch(jax.tree)
