"""Export: the files, their numbers in PyTorch and ONNX Runtime, and what is refused."""

import errno
import hashlib
import json
import shutil

import numpy as np
import pytest
from tiny_run import tiny_config

from medvlp_jax import text_tower
from medvlp_jax.export import __main__ as command
from medvlp_jax.export import card, check, export, onnx_graph, parts, write
from medvlp_jax.interop import load_tensors, save_safetensors
from medvlp_jax.methods.imitate import ReadBranch

FILES = {
    *("README.md", "medvlp_jax.json", "model.json", "modeling.py", "preprocessor.json"),
    *("trunk.safetensors", "heads.safetensors", "image_embedder.onnx"),
    *(f"text/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")),
}
WITHOUT_ONNX = FILES - {"image_embedder.onnx"}


# ---- what is written -----------------------------------------------------------


def test_folder_holds_these_files_and_no_pickle(exported, run, data):
    files = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.is_file()}
    assert set(files) == (FILES if onnx_graph.available() else WITHOUT_ONNX)
    manifest = json.loads(files["medvlp_jax.json"].read_text())
    assert set(manifest["files"]) == set(files) - {"medvlp_jax.json"}
    for name, record in manifest["files"].items():
        content = files[name].read_bytes()
        assert record == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        # A pickle of protocol 2 or later, and the zip that torch.save makes of one.
        assert not content.startswith((b"\x80", b"PK")), name
    assert manifest["step"] == 4
    assert manifest["config"]["data.dir"] == data.name
    for path in files.values():
        assert str(run.parent).encode() not in path.read_bytes(), path
        assert str(data).encode() not in path.read_bytes(), path


def test_without_onnx_everything_else_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "available", lambda: False)
    said = []
    out = export(run, tmp_path / "out", step=2, say=said.append)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == WITHOUT_ONNX
    assert any("medvlp_jax[onnx]" in line for line in said)
    assert json.loads((out / "medvlp_jax.json").read_text())["step"] == 2
    assert "image_embedder.onnx" not in (out / "README.md").read_text()


def test_preprocessor_says_what_the_evaluation_view_does(data):
    config = tiny_config(data, **{"image.evaluate": "decode|crop_border|center({size}, crop_from=80, fit='squash')"})
    recipe = parts.preprocessor(config)
    assert recipe["operations"] == "crop_border|center(64, crop_from=80, fit='squash')"
    assert (recipe["size"], recipe["frame"], recipe["fit"]) == (64, 80, "squash")
    with pytest.raises(ValueError, match=r"no center\("):
        parts.preprocessor(tiny_config(data, **{"image.evaluate": "decode|views(1)"}))


def test_card_shows_scores_of_this_step_only(trained, run, tmp_path):
    model, meta = parts.describe(trained), {"examples_seen": 32}
    assert "None with this export" in card.write(trained, model, meta, onnx=True)
    elsewhere = trained._replace(workdir=tmp_path)
    row = {"protocol": "zero_shot", "name": "zero_shot/auc/mean", "value": 0.81234, "interval": [0.79, 0.83]}
    row |= {"count": 604, "chance": 0.5, "random_init": 0.51, "raw_pixels": None, "variant": "corrected"}
    scores = {"data": "cxr_phantom", "split": "test", "split_hash": "ab12", "step": 4, "examples": 604, "scores": [row]}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    text = card.write(elsewhere, model, meta, onnx=True)
    assert "| zero-shot, mean AUC (corrected) | 0.812 | 0.790 to 0.830 | 0.510 |  | 0.500 | 604 |" in text
    assert "604 examples of cxr_phantom/test" in text
    (tmp_path / "scores.json").write_text(json.dumps(scores | {"step": 2}))
    assert "of step 2, not of this one" in card.write(elsewhere, model, meta, onnx=True)
    (tmp_path / "scores.json").write_text(json.dumps({"trained": {"loss": 1.0}}))
    assert "None with this export" in card.write(elsewhere, model, meta, onnx=True)
    assert text.startswith("---\nlibrary_name: medvlp_jax\n")
    assert "license: apache-2.0" in text
    assert "| test | " in text  # counts of the prepared data


def test_card_warns_about_credentialed_data(trained):
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.name = "mimic_cxr"
    text = card.write(trained._replace(config=config), parts.describe(trained), {}, onnx=False)
    assert "license: other" in text
    assert "data use agreement" in text
    assert "Not for diagnosis" in text


# ---- the same numbers elsewhere -----------------------------------------------------------


def test_check_compares_and_passes(trained, exported):
    pytest.importorskip("torch")
    said = []
    assert check.check(trained, exported, said.append)
    text = "\n".join(said)
    assert "images and" in text
    assert "cxr_phantom/tiny/test" in text
    for name in ("findings", "impression", "pooled", "regions", "text vectors"):
        assert f"torch   {name}" in text
    assert text.count("the same; the first is the same") == 2
    assert not list(exported.rglob("*.pyc"))


def test_check_sees_another_weight(trained, copy):
    pytest.importorskip("torch")
    heads = load_tensors(copy / "heads.safetensors")
    heads["diagnosis_head.linear2.weight"] = heads["diagnosis_head.linear2.weight"] * np.float32(1.01)
    save_safetensors(copy / "heads.safetensors", heads)
    said = []
    assert not check.check(trained, copy, said.append)
    assert any("impression" in line and "too large" in line for line in said)
    assert "FAILED" in said[-1]


def test_check_without_data_takes_random_views(trained, tmp_path):
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.dir = str(tmp_path)
    views, texts, origin = check.inputs(trained._replace(config=config))
    again, *_ = check.inputs(trained._replace(config=config))
    assert views.shape == (8, 64, 64, 1)
    np.testing.assert_array_equal(views, again)
    assert texts
    assert "random" in origin


def test_order_changes_ignores_ties():
    ours = np.array([[0.9, 0.5, 0.5 + 1e-7, 0.1]])
    assert check.order_changes(ours, np.array([[0.9, 0.5 + 1e-7, 0.5, 0.1]])) == 0
    assert check.order_changes(ours, np.array([[0.9, 0.1, 0.5, 0.5]])) == 1
    assert check.relative_difference(np.ones(2), np.full(2, np.nan)) == float("inf")


def test_transformers_opens_the_text_tower(trained, exported, monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported / "text")
    model, report = transformers.AutoModel.from_pretrained(
        exported / "text", add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    texts = ["No pleural effusion.", "Cardiomegaly " * 100]
    ids, mask = trained.tower.tokenizer.encode(texts, trained.tower.max_length)
    batch = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(batch["input_ids"].numpy(), ids)
    np.testing.assert_array_equal(batch["attention_mask"].numpy(), mask)
    with torch.no_grad():
        theirs = model.eval()(**batch).last_hidden_state.numpy()
    mean = (theirs * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(text_tower.encode_function(trained.tower)(texts), mean, atol=1e-5)


def test_plain_torch_takes_grey_or_colour_and_warns_of_the_range(seen, exported):
    torch = pytest.importorskip("torch")
    model = check.loader(exported).load(exported)
    views, ours = seen
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2)
    for given in (pixels, pixels[:, 0], pixels.expand(-1, 3, -1, -1), pixels.float()):
        theirs = model.embed_image(given)
        for name in ("findings", "impression"):
            np.testing.assert_allclose(theirs[name], ours.aligned[name][:, 0], atol=1e-4)
    with pytest.warns(UserWarning, match=r"0\.\.255"):
        model.embed_image(pixels.float() / 255)


@pytest.mark.parametrize("shape", [(64, 64), (130, 97), (300, 640), (20, 33)])
def test_plain_torch_makes_the_same_view(trained, exported, shape):
    pytest.importorskip("torch")
    model = check.loader(exported).load(exported)
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ours, theirs = trained.view(grey)[..., 0].astype(int), model.view(grey).numpy().astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_onnx_has_a_free_batch(seen, exported):
    pytest.importorskip("onnxruntime")
    if not onnx_graph.available():
        pytest.skip("onnx is not installed")
    views, ours = seen
    for n in (1, 3):
        theirs = check.run_onnx(exported / "image_embedder.onnx", views[:n])
        assert set(theirs) == {"findings", "impression", "pooled"}
        for name in ("findings", "impression"):
            assert check.relative_difference(ours.aligned[name][:n, 0], theirs[name]) < 1e-5


def test_padding_that_takes_part_in_attention_does_so_everywhere(trained, exported, seen, tmp_path):
    """The released preset lets zero tokens into the softmax."""
    torch = pytest.importorskip("torch")
    described = json.loads((exported / "model.json").read_text())
    described["read"]["mask_padding"] = False
    modeling, views = check.loader(exported), seen[0][:2]
    model, masked = modeling.Imitate(described), modeling.load(exported)
    model.load_state_dict(masked.state_dict(), strict=True)
    model.eval()
    config = trained.config.copy_and_resolve_references().model.read
    with config.unlocked():
        config.mask_padding = False
    tokens = np.random.default_rng(0).normal(size=(2, 40, 36)).astype(np.float32)
    branch = ReadBranch(config, 16, {"stats_scope": "global"}, np.float32)
    ours = branch.apply({name: tree["read"] for name, tree in trained.variables.items()}, tokens, train=False)
    with torch.no_grad():
        theirs = model.read.head(model.read.attention(torch.from_numpy(tokens))).numpy()
        other = masked.read.head(masked.read.attention(torch.from_numpy(tokens))).numpy()
    assert check.relative_difference(np.asarray(ours), theirs) < 1e-5
    assert check.relative_difference(other, theirs) > 1e-3
    if onnx_graph.available():
        pytest.importorskip("onnxruntime")
        tensors = (load_tensors(exported / name) for name in ("trunk.safetensors", "heads.safetensors"))
        onnx_graph.save(tmp_path / "model.onnx", onnx_graph.build(described, *tensors))
        expected = model.embed_image(torch.from_numpy(views[..., 0]))["findings"].numpy()
        got = check.run_onnx(tmp_path / "model.onnx", views)["findings"]
        assert check.relative_difference(expected, got) < 1e-5


# ---- bad input to export -----------------------------------------------------------


def refuse(capsys, arguments, *words):
    assert command.main(list(map(str, arguments))) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error, error


def test_export_refusals(run, exported, tmp_path, capsys):
    refuse(capsys, ["--workdir", tmp_path / "none"], "holds no run")
    refuse(capsys, ["--workdir", run, "--out", tmp_path / "out", "--step", 3], "no checkpoint of step 3", "2, 4")
    assert not (tmp_path / "out").exists()
    refuse(capsys, ["--workdir", run, "--out", exported], "already holds an export", "--overwrite")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    refuse(capsys, ["--workdir", run, "--out", tmp_path / "mine", "--overwrite"], "holds no export")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    refuse(capsys, ["--workdir", run, "--out", tmp_path / "mine" / "notes.txt"], "is a file")
    refuse(capsys, ["--workdir", run, "--out", tmp_path / "mine" / "notes.txt" / "out"], "Cannot write in", "--out")


def test_export_replaces_an_export_when_asked(copy, run, capsys):
    (copy / "left_over.txt").write_text("old")
    assert command.main(["--workdir", str(run), "--out", str(copy), "--overwrite"]) == 0
    assert not (copy / "left_over.txt").exists()
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_export_of_a_checkpoint_of_another_config(run, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / "run")
    stored = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(stored | {"model.features": 8}))
    refuse(
        capsys, ["--workdir", workdir], "holds another model than the config describes", "checkpoint (16,), model (8,)"
    )
    (workdir / "config.json").write_text("{")
    refuse(capsys, ["--workdir", workdir], "is damaged")


def test_full_disk_leaves_nothing_behind(run, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "save_safetensors", full)
    refuse(capsys, ["--workdir", run, "--out", tmp_path / "out"], "No space left on the device", "--out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_ends_with_an_error(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(write, "check_folder", lambda *_: False)
    refuse(capsys, ["--workdir", run, "--out", tmp_path / "out", "--check"], "does not compute what the run computes")


def test_check_without_torch_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    find = write.importlib.util.find_spec
    monkeypatch.setattr(write.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    refuse(capsys, ["--workdir", run, "--out", tmp_path / "out", "--check"], "medvlp_jax[torch]")
    assert not (tmp_path / "out").exists()
