"""Time of all evaluators beside one bare forward pass of the encoder over the same images.

    python -m medvlp_jax.prepare cxr_phantom/speed --train_studies 2600 --validation_studies 300 --test_studies 1000
    python -m benchmarks.evaluation_speed --data cxr_phantom/speed

ResNet-50 at 224 px (demo text tower), random weights: speed does not depend on them. Side one scores the test split as
the end of a run does, all evaluators with raw-pixel baselines: decoding, features of the training, validation and test
splits, two augmented validation views through the losses, probes, neighbours, prompts, grounding, bootstraps. Side two
runs the jitted image encoder on images that already lie on the device, for some batches before, between and behind the
parts of side one, because the speed of a machine drifts, and is scaled to as many images. Compiling the model is left
out of both (each side runs once on a few images first); the untrained twin, a second model, is left out too. About ten
minutes on two cores at 224 px.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from configs import imitate
from medvlp_jax import build, evaluators, sharding
from medvlp_jax import step as steps
from medvlp_jax.scorer import Scorer


def config_of(data: str, size: int, batch: int):
    config = imitate.get_config(f"data={data},small")
    with config.unlocked():
        config.image.size = size
        config.model.trunk.update(
            dict(depth="50", width=64, stem="imagenet", stage_sizes=(), widths=(), strides=(), zero_init_last_bn=False)
        )
        config.model.read.update(dict(keep=(0.25, 0.15, 0.10, 0.10), grid=16, tokens=512))
        config.eval_batch_size = batch
        config.batch_size = batch
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="cxr_phantom/speed")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bare_batches", type=int, default=12, help="of the bare forward pass, four times")
    arguments = parser.parse_args()
    config = config_of(arguments.data, arguments.size, arguments.batch)
    mesh = sharding.make_mesh(1, 1)
    parts = build.assemble(config, mesh)
    make_state, _ = steps.sharded_state(
        parts.model, parts.tx, build.batch_shapes(config, parts.tower.width), config.seed, mesh
    )
    state = make_state()
    variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
    scorer, split, names = Scorer(parts), config.data.test_split, config.final_evaluators
    splits = (config.data.train_split, config.data.eval_split, split)
    images = sum(len(parts.source(name)) for name in splits)
    shape = (arguments.batch, 1, arguments.size, arguments.size, 1)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    forward = jax.jit(lambda variables, image: parts.model.apply(variables, image, method="embed_image").pooled_BxVxC)

    def seconds_per_image(batches: int) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            forward(variables, pixels).block_until_ready()
        return (time.perf_counter() - start) / (batches * arguments.batch)

    seconds_per_image(2)
    compile_only(scorer, state, config)
    paces = [seconds_per_image(arguments.bare_batches)]
    context = scorer.context(state, split, names, baselines=True)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        begun = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - begun

    timed("features, train", lambda: context.features(config.data.train_split))
    paces.append(seconds_per_image(arguments.bare_batches))
    timed("features, others", lambda: [context.features(name) for name in dict.fromkeys(splits)])
    paces.append(seconds_per_image(arguments.bare_batches))
    for name in names:
        timed(name, lambda name=name: evaluators.get(name)(context))
    paces.append(seconds_per_image(arguments.bare_batches))
    print("bare forward pass: " + ", ".join(f"{1 / pace:.1f}" for pace in paces) + " images/s")
    total, bare = sum(seconds.values()), images * sum(paces) / len(paces)
    print(f"{images} images of {', '.join(f'{len(parts.source(s))} {s}' for s in splits)}, {arguments.size} px")
    for name, value in seconds.items():
        print(f"  {name:16s} {value:7.1f} s")
    print(f"all evaluators {total:.1f} s, bare forward pass {bare:.1f} s: {total / bare:.2f} x")


def compile_only(scorer: Scorer, state, config) -> None:
    """Everything of the model that compiles, once: what is read of an image depends on the split."""
    test, train = (f"{name}[:{config.eval_batch_size}]" for name in (config.data.test_split, config.data.train_split))
    context = scorer.context(state, test, ("grounding",))
    for name in (train, config.data.eval_split, test):
        context.features(name)
    next(iter(context.terms(test)))
    for words in (1, 10, 20, 40, 80):  # texts are read at a few lengths, each a program
        context.embed_texts([" ".join(["effusion"] * words)])


if __name__ == "__main__":
    main()
