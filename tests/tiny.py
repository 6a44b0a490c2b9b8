"""A run that fits a test: a few phantoms, a text tower of random weights, a narrow trunk."""

import ast
import collections
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

REPOSITORY = Path(__file__).resolve().parents[1]
STUDIES = {"train_studies": 40, "validation_studies": 12, "test_studies": 12}
SESSION = Path(tempfile.gettempdir()) / f"medvlp-jax-tests-{os.getpid()}"
"""What the processes of a test session share; `conftest.py` puts it among the session's temporary folders."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of the session, which the first process that asks for it makes. `make` fills a new folder."""
    SESSION.mkdir(parents=True, exist_ok=True)
    folder, part = SESSION / name, SESSION / f"{name}.part"
    with (SESSION / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def bert_config(**changes):
    """The shape of a BERT that fits a test."""
    from medvlp_jax.encoders.bert import BertConfig

    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 32, "max_position_embeddings": 128, "initializer_range": 0.5}
    return BertConfig(**{**shape, **more, **changes})


def make_data(folder: Path) -> Path:
    """Puts the phantoms (64 px) and a text tower under `folder`; returns the data folder."""
    from medvlp_jax.prepare import prepare

    def phantoms(new: Path) -> None:
        prepare("cxr_phantom/tiny", new, size=64, workers=1, progress=False, **STUDIES)

    shutil.copytree(made_once("phantoms", phantoms), folder, dirs_exist_ok=True)
    return make_tower(folder)


def make_tower(folder: Path) -> Path:
    """Writes a text tower of random weights under `folder`, the data folder, and returns that."""
    from medvlp_jax.data import tokenizer
    from medvlp_jax.encoders.bert import Bert
    from medvlp_jax.interop import save_bert

    words = tokenizer.load("phantom")
    config = bert_config(vocab_size=words.vocab_size)
    ids = np.zeros((1, 4), np.int32)
    save_bert(folder / "tower", config, fill(jax.eval_shape(Bert(config).init, jax.random.key(0), ids, ids)))
    words.save(folder / "tower")
    return folder


def fill(shapes, seed: int = 0):
    """Values of a trained model's size for a tree of shapes, without compiling; nothing stays at its default."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        if name in ("var", "scale"):
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        spread = np.sqrt(2 / max(np.prod(shape.shape[:-1]), 1)) if name == "kernel" else 0.2
        return rng.normal(0, spread, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def chest(height: int = 200, width: int = 180) -> np.ndarray:
    """Two dark lungs and dark air in a bright body that gets brighter downwards: uint8 (height, width)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    grey = 120 + 90 * y - 110 * (np.abs(x - 0.5) > 0.15 + 0.8 * y)
    for centre in (0.3, 0.7):
        grey -= 90 * (((x - centre) / 0.14) ** 2 + ((y - 0.4) / 0.28) ** 2 < 1)
    return np.clip(grey + rng.normal(0, 4, grey.shape), 5, 250).astype(np.uint8)


def blotches(seed: int, height: int = 120, width: int = 100) -> np.ndarray:
    """A picture of soft patches, another one for every seed: uint8 (height, width)."""
    import cv2

    small = np.random.default_rng(seed).integers(20, 240, (9, 8)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


ALL_EVALUATORS = "('validation_loss', 'retrieval', 'zero_shot', 'linear_probe', 'knn', 'grounding')"


# IMITATE's small size takes Muon, whose programs compile longer; most tests of it do without.
ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 3e-3}
MUON = {"optimizer.name": "muon", "optimizer.learning_rate": 1e-2}
TRAINED_TEXT = {"trained": True, "cache": False}  # of `config.text`, for methods whose small sizes hold their tower


def overrides(data: Path, **more: object) -> dict[str, object]:
    """Config fields of a tiny run."""
    return {
        "data.dir": str(data),
        "data.name": "cxr_phantom/tiny",
        "text.weights": str(data / "tower"),
        "text.max_length": 64,
        "text.layers": 0,
        "image.size": 64,
        "batch_size": 8,
        "total_steps": 4,
        "log_every_steps": 1,
        "checkpoint_every_steps": 2,
        "eval_every_steps": 0,
        "optimizer.warmup_steps": 1,
        "optimizer.schedule": "constant",  # the program does not depend on the length: runs share compiled steps
        "model.trunk.widths": "(8, 8, 16, 16)",
        "model.trunk.width": 8,
        "model.features": 16,
        "data.threads": 2,
        "final_evaluators": "('validation_loss', 'retrieval')",
        "evaluation.seeds": 2,
        "evaluation.resamples": 100,
        "report": False,
        **more,
    }


def make_config(data: Path, **more: object) -> ConfigDict:
    """The locked config of a tiny run on `data`, as `command` asks for it."""
    from configs import imitate

    config = imitate.get_config("demo")
    with config.unlocked():
        # Tuples are written as the command line takes them.
        written = overrides(data, **{**ADAMW, **more}).items()
        fields = {n: ast.literal_eval(v) if isinstance(v, str) and v.startswith("(") else v for n, v in written}
        config.update_from_flattened_dict(fields)
    return config


def make_run(data: Path, workdir: Path, step: int = 4) -> Path:
    """A run folder as training leaves it, with random weights and no training; needs only the tower of `data`."""
    from medvlp_jax import build, methods, text_tower
    from medvlp_jax import config as configs
    from medvlp_jax import step as steps
    from medvlp_jax.checkpoint import Checkpoints

    config = make_config(data)
    workdir.mkdir(parents=True, exist_ok=True)
    configs.claim_workdir(config, workdir)
    model = methods.get(config.method).build(config)
    batch = build.batch_shapes(config, text_tower.of_config(config).width)
    shapes = jax.eval_shape(lambda: steps.init_variables(model, batch, config.seed))
    rng = np.random.default_rng(0)  # without compiling the initialisation
    state = jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(s.dtype), shapes)
    state["batch_stats"] = jax.tree.map(np.abs, state["batch_stats"])
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(step, state, {})
        checkpoints.wait()
    return workdir


def command(
    data: Path, workdir: Path, *flags: str, method: str = "imitate", arg: str = "demo", **more: object
) -> list[str]:
    """The command line of a tiny run."""
    more = {**ADAMW, **more} if method == "imitate" else more
    fields = [f"--config.{name}={value}" for name, value in overrides(data, **more).items()]
    config = ["--config", f"configs/{method}.py:{arg}", "--workdir", str(workdir)]
    return [sys.executable, "-m", "medvlp_jax.main", *config, *fields, *flags]


# Hardly any optimisation: half the processor time of compiling a step. Most programs of the tests run once or twice.
CHEAP = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # later versions may not know them, and end a process that names such a flag
    CHEAP += " --xla_cpu_use_fusion_emitters=false --xla_cpu_opt_preset=FAST_COMPILE"


def environment(devices: int = 1, frameworks: bool = False) -> dict[str, str]:
    """Environment of a subprocess with simulated devices that starts fast and compiles cheaply.

    Args: frameworks: whether TensorFlow and PyTorch may be loaded, for event files; each takes seconds.
    """
    path = [] if frameworks else [str(REPOSITORY / "tests" / "without_frameworks")]
    path += [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {CHEAP}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Runs of one test session compile the same programs again and again.
        "JAX_COMPILATION_CACHE_DIR": str(SESSION / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run(args: list[str], devices: int = 1, check: bool = True, frameworks: bool = False) -> subprocess.CompletedProcess:
    """Runs a command in the repository (see `environment`); on failure shows its output."""
    env = environment(devices, frameworks)
    done = subprocess.run(args, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(args)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def losses(workdir: Path) -> dict[int, float]:
    """Step -> training loss."""
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "gradient_norm" in line}


def parameters(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by path, as NumPy."""
    from medvlp_jax.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints")
    tree = checkpoints.restore_arrays(step)
    checkpoints.close()
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}


def order(workdir: Path) -> dict[str, int]:
    """Records that the steps behind the last parameters consumed (`log_examples`), against what epochs must hold."""
    from medvlp_jax import config as configs
    from medvlp_jax.build import open_source
    from medvlp_jax.data.pipeline import permutation

    config = configs.load(workdir)
    examples = len(open_source(config, config.data.train_split))
    history = [json.loads(line) for line in (workdir / "examples.jsonl").read_text().splitlines()]
    numbers = [line["step"] for line in history]
    consumed = [index for line in history for index in line["index"]]
    repeated = skipped = 0
    for start in range(0, len(consumed), examples):
        epoch = collections.Counter(consumed[start : start + examples])
        repeated += sum(count - 1 for count in epoch.values())
        if start + examples <= len(consumed):
            skipped += examples - len(epoch)
    expected = [
        int(index)
        for epoch in range(-(-len(consumed) // examples))
        for index in permutation(config.seed, epoch if config.data.reshuffle else 0, examples)
    ][: len(consumed)]
    return {
        "steps": len(numbers),
        "steps out of order": sum(number != place for place, number in enumerate(numbers, 1)),
        "records consumed": len(consumed),
        "epochs": -(-len(consumed) // examples),
        "repeated within an epoch": repeated,
        "skipped within an epoch": skipped,
        "not where the seed puts them": sum(a != b for a, b in zip(consumed, expected, strict=True)),
    }
