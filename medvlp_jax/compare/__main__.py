"""Methods at equal compute:

    python -m medvlp_jax.compare --configs imitate,clip,siglip --seeds 3 --budget 600s --out runs/compare

Measures what a step of each method costs, sets the length of every run (and with it the schedule) by the budget, trains
`<out>/<method>-<seed>` by the very command that trains it alone, and writes table.md, table.json and comparison.png.
The same command again goes on where it stopped: finished runs are kept, interrupted ones resume, failed ones are tried
again; methods and seeds may be added. `--config.FIELD=VALUE` is passed to every run.
Exit codes: 0 all runs are in the table; 1 some are not, the table says why; 2 an error that trying again does not help,
named in one line; 75 stopped by a signal.
"""

import argparse
import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medvlp_jax.compare import budget as budgets
from medvlp_jax.compare import picture, runs, table
from medvlp_jax.compare.entries import Entry, read_entries
from medvlp_jax.compare.ledger import Ledger
from medvlp_jax.metrics import clock

REFUSED, INCOMPLETE, STOPPED = 2, 1, runs.STOPPED
PAGE = "report.html"

Say = Callable[[str], None]


class Comparison:
    """One comparison on its way. failed: method -> why it could not be measured."""

    def __init__(self, chosen: argparse.Namespace, overrides: Sequence[str], say: Say):
        self.out, self.seeds = Path(chosen.out), list(range(chosen.seeds))
        self.budget = budgets.parse_budget(chosen.budget)
        self.calibration_steps = chosen.calibration_steps
        self.entries = read_entries(chosen.configs, overrides)
        self.ledger = Ledger(self.out, self.budget, self.entries)
        self.failed: dict[str, tuple[str, list[str]]] = {}
        self._say = say
        for entry in self.entries:
            if (steps := self.steps(entry)) is not None:
                budgets.check_steps(entry.name, self.budget, entry.config, steps)

    def steps(self, entry: Entry) -> int | None:
        """Steps of every run of a method; None before they are known."""
        known = self.ledger.methods.get(entry.name, {})
        if "steps" in known:
            return known["steps"]
        return int(self.budget.amount) if self.budget.unit == "steps" else None

    def command(self, entry: Entry, seed: int) -> list[str]:
        """The command of one run."""
        steps = self.steps(entry)
        fields = {"total_steps": "STEPS" if steps is None else steps, "seed": seed}
        return runs.training_command(entry, self.out / f"{entry.name}-{seed}", fields)

    def preparations(self, entry: Entry) -> list[tuple[str, list[str]]]:
        """(what it finds, command) of the measurements that are still to be made before a method's runs."""
        known = self.ledger.methods.get(entry.name, {})
        found = [] if "cost" in known else [("cost", runs.measuring_command(entry))]
        if self.budget.unit == "s" and "seconds_per_step" not in known:
            found.append(
                ("seconds_per_step", runs.calibrating_command(entry, self._scratch(entry), self.calibration_steps))
            )
        return found

    def dry_run(self) -> list[str]:
        """All commands that are still to be run, in order."""
        lines = [shlex.join(command) for entry in self.entries for _, command in self.preparations(entry)]
        for entry, seed in self._runs():
            if not self._finished(entry, seed):
                lines.append(shlex.join(self.command(entry, seed)))
        if any(self.steps(entry) is None for entry in self.entries):
            lines.append("# STEPS: as many as the budget holds by what the commands before find")
        return lines

    def prepare(self, processes: runs.Processes) -> None:
        """Measures every method and sets its number of steps. Raises: ValueError when the budget is too small."""
        self.ledger.write()
        for entry in self.entries:
            for what, command in self.preparations(entry):
                self._say(
                    f"measure   {entry.name}: {'what a step costs' if what == 'cost' else 'how long a step takes'}"
                )
                outcome = processes(command, entry.name)
                if processes.stopped:
                    return
                if outcome.code:
                    self.failed[entry.name] = (outcome.reason, command)
                    self._say(f"failed    {entry.name}: {outcome.reason}")
                    break
                self.ledger.add(entry, **{what: self._reading(what, outcome, entry)})
        planned = []
        for entry in self.entries:
            if entry.name in self.failed:
                continue
            known = self.ledger.methods[entry.name]
            cost, seconds = known["cost"], known.get("seconds_per_step")
            steps = self.steps(entry)
            if steps is None:
                steps = budgets.steps_within(self.budget, flops=cost["flops"], seconds=seconds)
            timed = f", {1e3 * seconds:.1f} ms" if seconds else ""
            self._say(
                f"plan      {entry.name}: {steps:,} steps of {cost['flops'] / 1e9:.3g} GFLOPs{timed}, "
                f"{cost['memory_bytes'] / 2**20:,.0f} MiB"
            )
            budgets.check_steps(entry.name, self.budget, entry.config, steps)
            planned.append((entry, steps))
        for entry, steps in planned:  # from here on the budget is that of this folder
            self.ledger.add(entry, steps=steps)

    def train(self, processes: runs.Processes) -> list[dict[str, Any]]:
        """Trains what is not finished, seed by seed. Returns: run, reason and command of what is not finished then."""
        todo = [(entry, seed) for entry, seed in self._runs() if not self._finished(entry, seed)]
        done = len(self.entries) * len(self.seeds) - len(todo)
        if done:
            self._say(f"reused    {done} finished run(s)")
        unfinished, spent = [], []
        for number, (entry, seed) in enumerate(todo):
            name, command = f"{entry.name}-{seed}", self.command(entry, seed)
            if entry.name in self.failed:
                why, failing = self.failed[entry.name]
                unfinished.append({"run": name, "reason": f"not started: {why}", "command": shlex.join(failing)})
                continue
            if processes.stopped:
                unfinished.append({"run": name, "reason": "not started yet", "command": shlex.join(command)})
                continue
            self._say(f"run       {number + 1}/{len(todo)} {name}")
            start = time.monotonic()
            outcome = processes(command, name)
            self.ledger.add_peak(name, outcome.peak_bytes)
            spent.append(time.monotonic() - start)
            left = (len(todo) - number - 1) * sum(spent) / len(spent)
            reason = outcome.reason or ("" if self._finished(entry, seed) else "ended well, but without its scores")
            if reason:
                unfinished.append({"run": name, "reason": reason, "command": shlex.join(command)})
            state = f"failed    {name}: {reason}" if reason else f"done      {name} in {clock(spent[-1])}"
            self._say(f"{state}; about {clock(left)} left" if left else state)
        return unfinished

    def write(self, unfinished: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
        """Writes table and picture from the finished runs. Returns: the content of `table.json`."""
        methods, scored = {}, []
        for entry in self.entries:
            finished = {s: self.out / f"{entry.name}-{s}" for s in self.seeds if self._finished(entry, s)}
            peaks = {s: self.ledger.runs.get(path.name, {}).get("peak_bytes") for s, path in finished.items()}
            known = self.ledger.methods.get(entry.name, {}) | {"peak_bytes": peaks}
            methods[entry.name], own = table.summary(entry, known, finished)
            scored += own
        about = {"command": command, "budget": str(self.budget), "budget_words": self.budget.words, "seeds": self.seeds}
        content = table.table(about, methods, scored, unfinished)
        table.write(content, self.out)
        if scored:
            picture.draw(content, self.out / "comparison.png")
        return content

    def finished_folders(self) -> list[Path]:
        """Folders of the finished runs, method by method."""
        order = [(entry, seed) for entry in self.entries for seed in self.seeds]
        return [self.out / f"{entry.name}-{seed}" for entry, seed in order if self._finished(entry, seed)]

    def _runs(self) -> list[tuple[Entry, int]]:
        """Seed by seed, so that a comparison that is stopped early has all methods."""
        return [(entry, seed) for seed in self.seeds for entry in self.entries]

    def _finished(self, entry: Entry, seed: int) -> bool:
        wanted = entry.fields | {"seed": seed, "total_steps": self.steps(entry)}
        return runs.finished(self.out / f"{entry.name}-{seed}", wanted)

    def _scratch(self, entry: Entry) -> Path:
        return self.out / f"calibration-{entry.name}"

    def _reading(self, what: str, outcome: runs.Outcome, entry: Entry) -> Any:
        if what == "cost":
            return json.loads(outcome.output.splitlines()[-1])
        seconds = runs.seconds_per_step(self._scratch(entry))
        shutil.rmtree(self._scratch(entry))
        return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m medvlp_jax.compare", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--configs", required=True, help="imitate,clip or configs/imitate.py:preset=released,...; each in its demo form"
    )
    parser.add_argument("--budget", required=True, help="what every run may spend: 1000steps, 600s or 2e15flops")
    parser.add_argument("--out", required=True, help="folder of the comparison and of its runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method, with seeds 0, 1, ... (default 3)")
    parser.add_argument(
        "--calibration_steps",
        type=int,
        default=runs.CALIBRATION_STEPS,
        help=f"with a budget of seconds: steps that are timed (default {runs.CALIBRATION_STEPS})",
    )
    parser.add_argument("--report", action="store_true", help=f"also write {PAGE}, all runs side by side")
    parser.add_argument("--dry_run", action="store_true", help="print the commands that are still to be run, run none")
    parser.add_argument("--json", action="store_true", help="print table.json on stdout, and progress on stderr")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    chosen, others = parser.parse_known_args(words)
    unknown = [word for word in others if not word.startswith("--config.")]
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)} (fields of configs are given as --config.FIELD=VALUE)")
    if chosen.seeds < 1 or chosen.calibration_steps < 8:
        parser.error(
            f"--seeds {chosen.seeds} must be 1 or more, --calibration_steps {chosen.calibration_steps} 8 or more"
        )
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    say = lambda line: print(line, file=sys.stderr if chosen.json else sys.stdout, flush=True)  # noqa: E731
    try:
        comparison = Comparison(chosen, others, say)
        if chosen.dry_run:
            for line in comparison.dry_run():
                print(line)
            return 0
        return _run(comparison, chosen, table.command_line(words), say)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return REFUSED


def _run(comparison: Comparison, chosen: argparse.Namespace, command: str, say: Say) -> int:
    out = comparison.out
    say(f"compare   {len(comparison.entries)} method(s), {chosen.seeds} seed(s), {comparison.budget.words}, in {out}")
    with runs.alone(out) as lock, runs.Processes(say, lock) as processes:
        comparison.prepare(processes)
        unfinished = comparison.train(processes)
        content = comparison.write(unfinished, command)
        folders = comparison.finished_folders()
        if chosen.report and len(folders) > 1 and not processes.stopped:
            outcome = processes(
                ["python", "-m", "medvlp_jax.report", *map(str, folders), "--out", str(out / PAGE)], "report"
            )
            say(f"report    not written: {outcome.reason}" if outcome.code else f"report    {out / PAGE}")
    for row in content["unfinished"]:
        say(f"missing   {row['run']}: {row['reason']}")
    if chosen.json:
        print(json.dumps(content))
    else:
        say(f"\n{(out / 'table.md').read_text(encoding='utf-8')}")
    say(f"table     {out / 'table.md'}, {out / 'table.json'}")
    if folders:
        say(f"picture   {out / 'comparison.png'}")
    if processes.stopped:
        say("stopped   by a signal; the same command goes on")
        return STOPPED
    return INCOMPLETE if content["unfinished"] else 0


if __name__ == "__main__":
    sys.exit(main())
