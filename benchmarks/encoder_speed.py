"""Speed of the encoders on CPU, beside PyTorch in the same run.

    python benchmarks/encoder_speed.py                       # ResNet-50 train step and BERT-base forward, 2 threads
    python benchmarks/encoder_speed.py --only resnet --batch 16
    python benchmarks/encoder_speed.py --no-torch

Prints one line per measurement: the fastest and the median wall seconds of a call and the CPU seconds it used, float32,
random data and weights. Rounds of JAX and PyTorch alternate, so a busy machine is equally unkind to both. CPU seconds
are the steadier figure on a shared machine.

ResNet-50: 224 px, BatchNorm in training, forward and backward; one-channel images for JAX (the stem sums its kernel),
three channels and channels-last for PyTorch. BERT-base: forward without dropout, all tokens valid, fused attention in
PyTorch.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare(title: str, calls: dict[str, Callable[[], object]], rounds: int) -> None:
    """Alternates the calls, each of which blocks until its result is there, and prints their times."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compile, allocate
    for _ in range(rounds):
        for name, call in calls.items():
            start, used = time.perf_counter(), cpu_seconds()
            call()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(cpu_seconds() - used)
    for name in calls:
        print(
            f"{title:42s} {name:6s} fastest {min(wall[name]):7.3f} s   median {statistics.median(wall[name]):7.3f} s   "
            f"CPU {statistics.median(cpu[name]):7.3f} s",
            flush=True,
        )


def jax_resnet(batch: int, side: int) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    from medvlp_jax.encoders.resnet import ResNet

    model = ResNet(depth="50")
    image = jax.random.normal(jax.random.key(1), (batch, side, side, 1))
    init = jax.jit(lambda key: model.init(key, image[:1, :64, :64], train=False))
    variables = init(jax.random.key(0, impl="rbg"))

    @jax.jit
    def step(params, batch_stats, image):
        def loss(params):
            variables = {"params": params, "batch_stats": batch_stats}
            levels, updates = model.apply(variables, image, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(levels["pooled"])), updates

        return jax.value_and_grad(loss, has_aux=True)(params)

    return lambda: jax.block_until_ready(step(variables["params"], variables["batch_stats"], image))


def torch_resnet(batch: int, side: int) -> Callable[[], object]:
    import torch
    from torch_imitate import ResNet50

    model = ResNet50().to(memory_format=torch.channels_last).train()
    image = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)

    def step():
        model.zero_grad(set_to_none=True)
        model(image)[-1].mean((2, 3)).square().mean().backward()

    return step


def jax_bert(batch: int, length: int) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    from medvlp_jax.encoders.bert import Bert, BertConfig

    model = Bert(BertConfig())
    ids = jax.random.randint(jax.random.key(1), (batch, length), 0, 30522)
    mask = jnp.ones((batch, length), bool)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), ids[:1], mask[:1])
    encode = jax.jit(lambda variables, ids, mask: model.apply(variables, ids, mask).last)
    return lambda: jax.block_until_ready(encode(variables, ids, mask))


def torch_bert(batch: int, length: int) -> Callable[[], object]:
    import torch
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False).eval()
    ids = torch.randint(0, 30522, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.long)

    def encode():
        with torch.inference_mode():
            return model(ids, attention_mask=mask).last_hidden_state

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPUs this process may use (default 2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("resnet", "bert"))
    parser.add_argument("--batch", type=int, help="images (default 16) or texts (default 32)")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--length", type=int, default=256, help="tokens per text")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before jax sizes its thread pool
    if args.torch:
        import torch

        torch.set_num_threads(args.threads)
    if args.only != "bert":
        batch = args.batch or 16
        calls = {"jax": jax_resnet(batch, args.side)}
        if args.torch:
            calls["torch"] = torch_resnet(batch, args.side)
        compare(f"ResNet-50 train step {batch} x {args.side} px", calls, args.rounds)
    if args.only != "resnet":
        batch = args.batch or 32
        calls = {"jax": jax_bert(batch, args.length)}
        if args.torch:
            calls["torch"] = torch_bert(batch, args.length)
        compare(f"BERT-base forward {batch} x {args.length} tokens", calls, args.rounds)


if __name__ == "__main__":
    main()
