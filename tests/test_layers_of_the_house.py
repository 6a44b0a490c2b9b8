"""Who may import whom inside the package, read from the source of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = ("medvlp_jax", "tfds_builders")
ASSETS = ROOT / "medvlp_jax" / "assets"  # files that are copied to users, never imported here

# Folder -> what its modules may import of this repository.
MAY_IMPORT = {
    "medvlp_jax/losses": ("medvlp_jax.losses",),
    "medvlp_jax/layers": ("medvlp_jax.layers",),
    "medvlp_jax/encoders": ("medvlp_jax.encoders", "medvlp_jax.layers"),
    "medvlp_jax/data": ("medvlp_jax.data",),
    "medvlp_jax/methods": ("medvlp_jax.methods", "medvlp_jax.encoders", "medvlp_jax.layers", "medvlp_jax.losses"),
    "medvlp_jax/interop": ("medvlp_jax.interop", "medvlp_jax.encoders"),
    "medvlp_jax/evaluators": (
        "medvlp_jax.evaluators",
        "medvlp_jax.methods.embeddings",
        "medvlp_jax.data.labels",
        "medvlp_jax.heatmap",
    ),
    "medvlp_jax/plan": (
        "medvlp_jax.plan",
        "medvlp_jax.methods",
        "medvlp_jax.encoders",
        *(f"medvlp_jax.{module}" for module in ("build", "config", "optim", "sharding", "step", "text_tower")),
    ),
    "medvlp_jax/report": (
        "medvlp_jax.report",
        "medvlp_jax.evaluators",
        "medvlp_jax.data",
        "medvlp_jax.methods.embeddings",
        *(
            f"medvlp_jax.{module}"
            for module in ("build", "checkpoint", "config", "goodput", "heatmap", "metrics", "trained")
        ),
    ),
    "medvlp_jax/export": (
        "medvlp_jax.export",
        "medvlp_jax.__version__",
        "medvlp_jax.checkpoint",
        "medvlp_jax.config",
        "medvlp_jax.data",
        "medvlp_jax.encoders",
        "medvlp_jax.interop",
        "medvlp_jax.layers",
        "medvlp_jax.methods",
        "medvlp_jax.optim",
        "medvlp_jax.score_table",
        "medvlp_jax.text_tower",
        "medvlp_jax.trained",
    ),
    "medvlp_jax/compare": (
        "medvlp_jax.compare",
        "medvlp_jax.plan",
        "medvlp_jax.report",
        "medvlp_jax.evaluators.scores",
        "medvlp_jax.data.side_tables",
        "medvlp_jax.data.whole_files",
        *(f"medvlp_jax.{module}" for module in ("build", "config", "metrics", "score_table", "sharding", "text_tower")),
    ),
    "tfds_builders": ("tfds_builders", "medvlp_jax.data"),
}
# Heavy packages -> modules of medvlp_jax that may import them, inside functions only.
HEAVY = {
    "tensorflow": (),
    "tensorboard": (),
    "torch": ("interop/tensors.py", "export/check.py"),
    "onnx": ("export/onnx_graph.py",),
    "onnxruntime": ("export/check.py",),
    "torchvision": (),
    "clu": ("metrics.py",),
    "tensorboardX": ("metrics.py",),
    "matplotlib": ("report/charts.py", "compare/picture.py"),
    "tensorflow_datasets": ("prepare.py", "data/records.py", "data/shuffling.py"),
    "apache_beam": ("data/beam_chunks.py",),
}


def imports(source):
    """(dotted name, whether at module level) of everything that a module imports."""
    found = []

    def walk(node, top):
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            found.extend((f"{prefix}.{alias.name}", top) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child, top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    walk(ast.parse(source), True)
    return found


def modules(folder):
    paths = sorted(path for path in (ROOT / folder).rglob("*.py") if not path.name.startswith("test_"))
    paths = [path for path in paths if path.parent != ASSETS]
    assert paths
    return {path.relative_to(ROOT / folder).as_posix(): imports(path.read_text(encoding="utf-8")) for path in paths}


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_reader_sees_every_form_of_import():
    source = """
import os, torch.nn as nn
from medvlp_jax import data, sharding as s
if True:
    from medvlp_jax.data.images import read
class A:
    import clu
    def method(self):
        with open("x"):
            import tensorflow
from .sibling import x
"""
    assert imports(source) == [
        ("os", True),
        ("torch.nn", True),
        ("medvlp_jax.data", True),
        ("medvlp_jax.sharding", True),
        ("medvlp_jax.data.images.read", True),
        ("clu", True),
        ("tensorflow", False),
        (".sibling.x", True),
    ]
    assert within("medvlp_jax.data.images.read", ["medvlp_jax.data"])
    assert not within("medvlp_jax.database", ["medvlp_jax.data"])


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folder_imports_only_what_it_may(folder):
    wrong = [
        f"{folder}/{path} imports {name}"
        for path, found in modules(folder).items()
        for name, _ in found
        if within(name, OWN) and not within(name, MAY_IMPORT[folder])
    ]
    assert wrong == []


def test_every_folder_has_a_rule():
    folders = {f"medvlp_jax/{path.parent.name}" for path in (ROOT / "medvlp_jax").glob("*/__init__.py")}
    assert folders | {"tfds_builders"} == set(MAY_IMPORT)


def test_imports_are_absolute_and_stay_out_of_configs_and_tests():
    found = {f"{folder}/{path}": names for folder in OWN for path, names in modules(folder).items()}
    wrong = [(path, n) for path, names in found.items() for n, _ in names if within(n, ("configs", "tests"))]
    assert wrong == []
    assert [(path, n) for path, names in found.items() for n, _ in names if n.startswith(".")] == []


def test_heavy_packages_are_imported_inside_few_functions_only():
    wrong = [
        f"medvlp_jax/{path} imports {name}{' at module level' if top else ''}"
        for path, found in modules("medvlp_jax").items()
        for name, top in found
        for package, allowed in HEAVY.items()
        if within(name, (package,)) and (top or path not in allowed)
    ]
    assert wrong == []


def test_files_for_users_stand_alone():
    found = {path.name: imports(path.read_text(encoding="utf-8")) for path in ASSETS.glob("*.py")}
    assert set(found) == {"modeling.py"}
    top = {name.split(".")[0] for name, top in found["modeling.py"] if top}
    inside = {name.split(".")[0] for name, top in found["modeling.py"] if not top}
    assert top - set(sys.stdlib_module_names) == {"torch"}
    assert inside == {"safetensors", "transformers"}
    ours = [n for folder in OWN for names in modules(folder).values() for n, _ in names]
    assert [name for name in ours if within(name, ("medvlp_jax.assets",))] == []


def test_training_does_not_load_tensorflow_or_torch():
    code = "import sys, medvlp_jax.train, medvlp_jax.pretrain_text, medvlp_jax.prepare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "medvlp_jax.data.pipeline" in loaded
    assert loaded & set(HEAVY) == set()
