"""Two or more sides measured in turns, one step at a time, each in a process of its own on the same cores."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def serve(step: Callable[[], object]) -> None:
    """A worker's part: one line in, one step, one line with its seconds out. The first step compiles and allocates."""
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


def in_turns(
    commands: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Seconds of every step, by side. Raises: SystemExit naming the command of a side that does not start."""
    processes = {}
    for side, command in commands.items():
        processes[side] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if processes[side].stdout.readline().strip() != "ready":
            raise SystemExit(f"{' '.join(command)} did not start; run it by hand to see why (is PyTorch installed?).")
    seconds: dict[str, list[float]] = {side: [] for side in processes}
    for _ in range(rounds):
        for side, process in processes.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            seconds[side].append(float(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return seconds
