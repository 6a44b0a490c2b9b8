"""GLoRIA's local loss and its gradients: this project's tiles beside PyTorch with the loop of the released code.

    python benchmarks/gloria_step.py                    # 48 images and texts, 361 regions, 97 words: some minutes
    python benchmarks/gloria_step.py --lengths drawn    # texts of about 16 words, as sentences have

The released loop (marshuang80/gloria@416466a, written anew here) takes one text at a time, cut to its words, against
all images, and autograd keeps what every turn computed. Ours computes tiles of texts of one length, again in the
backward pass. Float32, random regions and words of width 768, CPU; sides in turns, one step at a time, on the same
cores.

Memory is what a step needs at most beyond inputs and loaded libraries, from the kernel's account of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

try:
    from benchmarks import turns
except ImportError:  # started as a file
    import turns

HERE = Path(__file__).resolve().parent
SIDES = ("torch", "ours")


def inputs(flags: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions, words and how many words every text has."""
    rng = np.random.default_rng(0)
    region_BxRxD = rng.normal(size=(flags.batch_size, flags.regions, flags.width)).astype(np.float32)
    word_BxWxD = 0.2 * rng.normal(size=(flags.batch_size, flags.words, flags.width)).astype(np.float32)
    length_B = np.full(flags.batch_size, flags.words)
    if flags.lengths == "drawn":
        length_B = np.clip(np.round(16 * np.exp(rng.normal(0.0, 0.5, flags.batch_size))), 2, flags.words).astype(int)
    return region_BxRxD, word_BxWxD, length_B


def torch_step(flags: argparse.Namespace) -> Callable[[], float]:
    """A step of the released loop."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(flags.threads)
    region_BxRxD, word_BxWxD, length_B = inputs(flags)
    regions_BxDxR = torch.from_numpy(region_BxRxD.swapaxes(1, 2).copy()).requires_grad_()
    words_BxDxW = torch.from_numpy(word_BxWxD.swapaxes(1, 2).copy()).requires_grad_()
    batch, width, _ = regions_BxDxR.shape
    label_B = torch.arange(batch)

    def step() -> float:
        regions_BxDxR.grad = words_BxDxW.grad = None
        columns = []
        for text, length in enumerate(length_B.tolist()):
            word_BxDxW = words_BxDxW[text, :, :length].unsqueeze(0).contiguous().repeat(batch, 1, 1)
            dot_BxRxW = regions_BxDxR.transpose(1, 2).contiguous() @ word_BxDxW
            over_words_BxRxW = F.softmax(dot_BxRxW, dim=-1)
            over_regions_BxWxR = F.softmax(4.0 * over_words_BxRxW.transpose(1, 2).contiguous(), dim=-1)
            seen_BxDxW = regions_BxDxR @ over_regions_BxWxR.transpose(1, 2).contiguous()
            word, seen = (x.transpose(1, 2).reshape(-1, width) for x in (word_BxDxW, seen_BxDxW))
            norms = (word.norm(2, 1) * seen.norm(2, 1)).clamp(min=1e-8)
            cosine_BxW = ((word * seen).sum(1) / norms).view(batch, length)
            columns.append(cosine_BxW.mul_(5.0).exp_().sum(dim=1, keepdim=True).log())
        score_BxB = 10.0 * torch.cat(columns, 1)
        loss = F.cross_entropy(score_BxB, label_B) + F.cross_entropy(score_BxB.T, label_B)
        loss.backward()
        return loss.item()

    return step


def our_step(flags: argparse.Namespace) -> Callable[[], float]:
    """A compiled step of this project's loss; texts are cut to the longest of the batch, in steps of eight words."""
    import jax

    from medvlp_jax.losses.word_region import word_region_loss

    region_BxRxD, word_BxWxD, length_B = inputs(flags)
    longest = min(-(-int(length_B.max()) // 8) * 8, flags.words)
    mask_BxW = np.arange(longest) < length_B[:, None]

    def loss(regions, words):
        return word_region_loss(regions, words, mask_BxW)

    arrays = jax.device_put((region_BxRxD, word_BxWxD[:, :longest]))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays).compile()
    return lambda: float(jax.block_until_ready(compiled(*arrays))[0])


def resident(name: str) -> float:
    """`VmRSS` (now) or `VmHWM` (highest) of this process in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def worker(flags: argparse.Namespace) -> None:
    """Serves steps, or takes one and prints its loss and the memory it needed."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    step = {"torch": torch_step, "ours": our_step}[flags.side](flags)
    if flags.what == "step":
        turns.serve(step)
        return
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the highest so far
    loss = step()
    print(json.dumps({"loss": loss, "mebibytes": resident("VmHWM") - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--regions", type=int, default=361)
    parser.add_argument("--words", type=int, default=97)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--lengths", choices=("full", "drawn"), default="full")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("step", "memory"), default="step", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        worker(flags)
        return
    sizes = ("batch_size", "regions", "words", "width", "lengths", "threads")
    names = [f"--{name}={getattr(flags, name)}" for name in sizes]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    commands = {side: [sys.executable, __file__, f"--side={side}", *names] for side in SIDES}
    memory = {}
    for side, command in commands.items():
        done = subprocess.run([*command, "--what=memory"], env=environment, capture_output=True, text=True, check=True)
        memory[side] = json.loads(done.stdout)
    seconds = turns.in_turns(commands, flags.rounds, environment)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    print("side     s/step  x torch  peak MiB  of torch      loss")
    for side in SIDES:
        speed, share = medians["torch"] / medians[side], memory[side]["mebibytes"] / memory["torch"]["mebibytes"]
        print(
            f"{side:6s} {medians[side]:8.2f} {speed:8.2f} {memory[side]['mebibytes']:9.0f} {share:9.2f} "
            f"{memory[side]['loss']:9.5f}"
        )
    print(json.dumps({"benchmark": "gloria_step", **vars(flags), "seconds": seconds, "memory": memory}))


if __name__ == "__main__":
    main()
