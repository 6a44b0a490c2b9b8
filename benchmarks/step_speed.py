"""Training steps per second: this project's IMITATE beside PyTorch with the structure of the released one.

    python benchmarks/step_speed.py                        # about 8 minutes on two cores; needs PyTorch
    python benchmarks/step_speed.py --sides torch,cached   # the four sides together hold up to 30 GB

Both train ResNet-50 at 224 px, batch 16, two views, float32, AdamW, random data and weights, with a frozen 12-layer
BERT of 256 tokens for each of two report sections. PyTorch runs the trunk four times per step and BERT in the loop, as
the released code does (`torch_imitate.py` says which settings make it fastest). Ours runs the trunk twice, once per
view, and takes text vectors from the cache (`cached`) or from BERT inside the step (`live`, without any padding);
`reports` is `live` with lengths as reports have them (see REPORT_TOKENS), which PyTorch pads to full length.

`peak` is a bound: products of two matrices of side 2,048 alone, in PyTorch, as many as the FLOPs of the `cached` step
(counted by the compiler) need. No step is faster whose FLOPs run at the speed of such products.

The sides run in processes of their own on the same cores, in turns, one step at a time; ratios are of medians.

    python benchmarks/step_speed.py --device gpu --batch_size 128 --rounds 20 --sides torch,cached,live

measures them on one GPU instead, in bfloat16 on both sides, where the released training uses half precision.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

try:
    from benchmarks import turns
except ImportError:  # started as a file
    import turns

HERE = Path(__file__).resolve().parent
KINDS = ("torch", "cached", "live", "reports", "peak")
SIDE = 2048  # of the matrices behind a bound
# Median tokens of a section in the `reports` figure: lengths are log-normal with a spread of 0.5, cut to `--tokens`.
REPORT_TOKENS = {"findings": 90, "impression": 30}


class Sizes(NamedTuple):
    threads: int
    batch_size: int
    image_size: int
    tokens: int
    device: str


def our_step(kind: str, sizes: Sizes) -> Callable[[], float]:
    """Builds the step that training runs, from the config of the full recipe, on the default devices."""
    from medvlp_jax import host_memory

    train_step, make_state, frozen, batch = _our_parts(kind, sizes)
    holder = [make_state()]

    def step() -> float:
        holder[0], metrics = train_step(holder[0], frozen, batch)
        host_memory.settle(metrics)
        return float(metrics["loss"])

    return step


def peak_step(sizes: Sizes) -> Callable[[], float]:
    """Products of square matrices in PyTorch with as many FLOPs as our cached step has."""
    import jax
    import torch

    train_step, make_state, frozen, batch = _our_parts("cached", sizes)
    flops = train_step.lower(jax.eval_shape(make_state), frozen, batch).cost_analysis()["flops"]
    x, y = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    products = round(flops / (2 * SIDE**3))

    def step() -> float:
        for _ in range(products):
            out = x @ y
        return float(out[0, 0])

    return step


def _our_parts(kind: str, sizes: Sizes):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from configs import imitate
    from medvlp_jax import methods, optim, sharding, text_tower
    from medvlp_jax import step as steps
    from medvlp_jax.encoders.bert import Bert, BertConfig
    from medvlp_jax.methods.imitate import SECTIONS

    _, batch_size, image_size, tokens, device = sizes
    with imitate.get_config().unlocked() as config:
        config.model.dtype, config.optimizer.clip_norm = "float32" if device == "cpu" else "bfloat16", 0.0
        config.batch_size, config.image.size = batch_size, image_size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (batch_size, 2, image_size, image_size, 1)).astype(np.uint8),
        **{f"has_{section}": np.ones(batch_size, bool) for section in SECTIONS},
        **{f"{section}_hash": np.arange(batch_size, dtype=np.int32) for section in SECTIONS},
    }
    vectors = {f"{section}_embedding": np.zeros((batch_size, 768), np.float32) for section in SECTIONS}
    tower, frozen = None, {}
    if kind == "cached":
        batch |= {name: rng.normal(size=x.shape).astype(np.float32) for name, x in vectors.items()}
    else:
        bert = BertConfig()
        ids = np.zeros((1, 4), np.int32)
        frozen = jax.jit(Bert(bert).init)(jax.random.key(0, impl="rbg"), ids, ids)
        tower = text_tower.TextTower(None, frozen, 768, tokens, "", bert, "cls", jnp.dtype(config.model.dtype))
        for section in SECTIONS:
            batch[f"{section}_ids"] = rng.integers(1000, 28000, (batch_size, tokens)).astype(np.int32)
            lengths = np.full(batch_size, tokens)
            if kind == "reports":
                lengths = np.round(REPORT_TOKENS[section] * np.exp(rng.normal(0.0, 0.5, batch_size)))
            batch[f"{section}_mask"] = np.arange(tokens) < lengths[:, None]
    method = methods.get("imitate")
    model, tx, mesh = method.build(config), optim.optimizer(config.optimizer, 1000), sharding.make_mesh()
    make_state, target = steps.sharded_state(model, tx, {**batch, **vectors}, 0, mesh)
    train_step = steps.make_train_step(model, method, tx, config, examples=200_000, tower=tower)
    train_step = steps.compile_train_step(train_step, target, mesh)
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    return train_step, make_state, frozen, batch


def worker(kind: str, sizes: Sizes) -> None:
    """Serves steps: one line in, one line with its seconds out."""
    on_gpu = sizes.device == "gpu"
    if on_gpu:
        os.environ |= {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the sides share the memory
    else:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: sizes.threads])
        os.environ["JAX_PLATFORMS"] = "cpu"
    if kind in ("torch", "peak"):
        import torch
        import torch_imitate

        torch.set_num_threads(sizes.threads)
        arguments = (sizes.batch_size, sizes.image_size, sizes.tokens)
        on = "cuda" if on_gpu else "cpu"
        step = torch_imitate.make_step(*arguments, device=on) if kind == "torch" else peak_step(sizes)
    else:
        from medvlp_jax import host_memory

        host_memory.keep_freed_memory()
        step = our_step(kind, sizes)
    turns.serve(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--sides", default=",".join(KINDS), help="what to compare; each side holds 4 to 8 GB")
    flags = parser.parse_args()
    sizes = Sizes(*[getattr(flags, name) for name in Sizes._fields])
    if flags.worker:
        worker(flags.worker, sizes)
        return
    names = [f"--{name}={value}" for name, value in sizes._asdict().items()]
    paths = [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    commands = {kind: [sys.executable, __file__, "--worker", kind, *names] for kind in flags.sides.split(",")}
    seconds = turns.in_turns(commands, flags.rounds, environment)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    for kind, median in medians.items():
        ratio = f"  {medians['torch'] / median:5.2f} x torch" if "torch" in medians else ""
        print(f"{kind:7s} {median:8.3f} s/step  {flags.batch_size / median:6.2f} images/s{ratio}")
    print(json.dumps({"benchmark": "step_speed", **vars(flags), "seconds": seconds}))


if __name__ == "__main__":
    main()
