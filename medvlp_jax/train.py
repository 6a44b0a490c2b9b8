"""The story of a run: mesh, data, model, shard, restore, then the loop of step, log, save and evaluate."""

import signal
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from medvlp_jax import build, host_memory, optim, sharding
from medvlp_jax import config as configs
from medvlp_jax import step as steps
from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.data import pipeline
from medvlp_jax.data.kept import KeptSource
from medvlp_jax.evaluate import score_run, untrained_scores
from medvlp_jax.goodput import Goodput
from medvlp_jax.metrics import Console, ExampleLog, MetricWriter, Progress, check_finite, clock, spent_line
from medvlp_jax.report.page import write_report
from medvlp_jax.score_table import brief, flat, format_scores
from medvlp_jax.scorer import Scorer
from medvlp_jax.watchdog import Watchdog


def train(config: Any, workdir: str | Path, *, command: str = "", started: float | None = None) -> dict[str, Any]:
    """Trains `config` in `workdir`, resuming from its newest checkpoint, and scores the result.

    The folder then holds `config.json`, `checkpoints/`, `metrics.jsonl`, `goodput.json`, TensorBoard events, `log.txt`,
    `scores.json`, `report.html`.
    SIGTERM and SIGINT save a checkpoint and return early; the same call resumes with the same batches and numbers.

    Args: command: the command line that this is, for the log and the report. started: wall-clock time at which the
      process began, for the account of its time; now when omitted.
    Returns: {"step", "scores", "stopped"}; `scores` is empty for a run that was told to stop.
    Raises: ValueError for a config that does not fit the data, devices or the folder; NonFiniteError when a loss term
      breaks; CheckpointError for a checkpoint that cannot be written or belongs to another model.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    sharding.initialize_processes(workdir, config.join_seconds)
    with Goodput(workdir, started=started, write=jax.process_index() == 0) as spent:
        return _run(config, workdir, command, spent)


def _run(config: Any, workdir: Path, command: str, spent: Goodput) -> dict[str, Any]:
    # -- folder, mesh
    main_process = jax.process_index() == 0
    configs.claim_workdir(config, workdir, write=main_process)
    say = Console(workdir, write=main_process)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    if command:
        say(f"command   {command}")
    say(f"run       {config.method} preset={config.preset} in {workdir}")
    say(
        f"devices   {mesh.devices.size} {jax.devices()[0].device_kind} in {jax.process_count()} process(es), "
        f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}, "
        f"batch {config.batch_size} = {config.batch_size // mesh.devices.size} per device"
    )

    # -- data, model, and a state born where it belongs
    parts = build.assemble(config, mesh, say)
    make_state, target = steps.sharded_state(
        parts.model, parts.tx, build.batch_shapes(config, parts.tower.width), config.seed, mesh
    )
    train_step = steps.make_train_step(
        parts.model,
        parts.method,
        parts.tx,
        config,
        examples=len(parts.train),
        tower=parts.step_tower,
        learning_rate=parts.schedule,
        sweep=parts.sweep,
    )
    train_step = steps.compile_train_step(train_step, target, mesh)

    # -- restore, or start
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
    first_step = checkpoints.latest_step() or 0
    writer = MetricWriter(workdir, resume_step=first_step, write=main_process)  # opens beside what follows
    if first_step:
        with spent.spend("restore"):
            state, meta = checkpoints.restore(first_step, target), checkpoints.meta(first_step)
        say(f"resume    step {first_step}, {meta['examples_seen']} examples seen, {clock(meta['seconds'])} of training")
    else:
        state, meta = build.load_pretrained(parts, make_state()), {"examples_seen": 0, "seconds": 0.0}
    spent.resume(first_step, meta.get("goodput", {}))
    count = optim.count_learning(state["params"], config.optimizer.rates)
    say(f"model     {count:,} trainable parameters, {config.model.dtype} compute")

    writer.hyperparameters(configs.flat(config))
    consumed = ExampleLog(workdir, resume_step=first_step) if config.log_examples and main_process else None
    progress = Progress(total_steps=parts.total_steps, batch_size=config.batch_size, views=config.image.views)
    scorer = Scorer(parts)
    stop = _StopSignal()

    def save(number: int) -> None:
        checkpoints.save(
            number,
            state,
            {
                "examples_seen": meta["examples_seen"] + (number - first_step) * config.batch_size,
                "seconds": spent.clock(),
                "goodput": spent.at_save(),
                "method": config.method,
                "batch_size": config.batch_size,
            },
        )

    # -- the loop
    number, unread = first_step, []
    batches = pipeline.train_batches(
        KeptSource(parts.train, config.data.memory_mib) if config.data.memory_mib else parts.train,
        parts.augment,
        batch_size=config.batch_size,
        seed=config.seed,
        start_example=meta["examples_seen"],
        reshuffle=config.data.reshuffle,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.threads,
        workers=config.data.workers,
    )
    # Left by an error, the loop still waits for a save under way.
    with (
        checkpoints,
        pipeline.device_prefetch(batches, sharding.batch_sharding(mesh)) as device_batches,
        stop,
        Watchdog(config.hang_seconds) as watch,
    ):
        spent.turn("step")
        while number < parts.total_steps:
            with spent.spend("data_wait"):
                batch = next(device_batches)
            compiling = number == first_step
            with spent.spend("compile" if compiling else "step"):
                before = spent.seconds()["compile"]
                state, metrics = train_step(state, parts.frozen, batch)
                settled = host_memory.settle(metrics)
                if compiling:
                    jax.block_until_ready(metrics)
                    say(f"compile   {spent.seconds()['compile'] - before:.1f} s")
            number += 1
            watch.alive()
            spent.stepped(number, timed=not compiling)
            if compiling:
                _log_images(writer, number, batch, main_process)
            if config.log_examples:
                index_B = multihost_utils.process_allgather(batch["index"], tiled=True)
                if consumed is not None:
                    consumed(number, index_B)
            unread.append((number, metrics))
            done = number == parts.total_steps
            stopping = stop.requested(checkpoints, number)
            evaluating = not done and config.eval_every_steps and number % config.eval_every_steps == 0
            saving = done or stopping or (config.checkpoint_every_steps and number % config.checkpoint_every_steps == 0)
            pausing = saving or evaluating
            if pausing:
                watch.rest()
            # Metrics are read one step late where the host should not wait for the devices it feeds.
            late = 0 if settled or pausing else 1
            while len(unread) > late:
                _report(*unread.pop(0), config, writer, progress, say, spent)
            if saving:
                with spent.spend("checkpoint"):
                    save(number)
            if evaluating and not stopping:
                with spent.spend("evaluation"):
                    results = scorer(state, config.data.eval_split, config.evaluators)
                writer.scalars(number, flat(results))
                say(f"step {number}/{parts.total_steps} {config.data.eval_split}: {brief(results)}")
            if stopping and not done:
                break
        with spent.spend("checkpoint"):
            checkpoints.wait()

    # -- the end: scores, or where to go on
    spent.turn("evaluation")
    stopped = number < parts.total_steps
    if stopped:
        say(f"stopped   by {stop.name} after step {number}; the checkpoint is saved, the same command resumes")
        scores = {}
    else:
        say(f"trained   {number} steps in {clock(spent.clock())}; scoring the {config.data.test_split} split")
        if cuts := parts.tower.tokenizer.cuts():
            say(f"text      {cuts}")
        scores = score_run(scorer, state, untrained_scores(scorer, make_state), workdir, number)
        final = {f"{config.data.test_split}/{row['name']}": row["value"] for row in scores["scores"]}
        writer.scalars(number, {name: value for name, value in final.items() if value is not None})
        spent.done()
    account = spent.scalars()
    writer.scalars(number, {"seconds": spent.clock(), **account})
    writer.close()
    if consumed is not None:
        consumed.close()
    if not stopped:
        for line in format_scores(scores):
            say(line)
        say(f"\ncheckpoint  {workdir / 'checkpoints' / str(number)}")
        say(f"metrics     {workdir / 'metrics.jsonl'}   (TensorBoard: tensorboard --logdir {workdir})")
        say(f"scores      {workdir / 'scores.json'}")
        if main_process and config.report:
            try:
                say(f"report      {write_report([workdir], say=say)}")
            except (ValueError, FileNotFoundError) as error:
                say(f"report      not written: {error}  Try: python -m medvlp_jax.report {workdir}")
    say(f"goodput     {spent_line(account)}")
    say.close()
    return {"step": number, "scores": scores, "stopped": stopped}


def _report(number, metrics, config, writer, progress, say, spent) -> None:
    """Checks a step's numbers and, on logging steps, writes them."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    check_finite(number, values)
    if number % config.log_every_steps == 0 or number == progress.total_steps or number == 1:
        rates = progress.rates(number, spent.seconds())
        writer.scalars(number, {**values, **rates, "seconds": spent.clock(), **spent.scalars()})
        shown = {k: v for k, v in values.items() if k not in ("gradient_norm", "learning_rate", "mu")}
        say(progress.line(number, shown, rates))


def _log_images(writer: MetricWriter, number: int, batch: dict[str, Any], main_process: bool) -> None:
    """A few augmented views as the model sees them, for TensorBoard."""
    if main_process:
        image_BxVxHxWx1 = batch["image"].addressable_shards[0].data[:4]
        shape = image_BxVxHxWx1.shape
        writer.images(number, {"views": jax.device_get(image_BxVxHxWx1).reshape(-1, *shape[2:])})


class _StopSignal:
    """SIGTERM or SIGINT asks the loop to save and leave; all processes of a job agree on the step."""

    def __init__(self):
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        # With several processes JAX's own preemption service listens for SIGTERM and finds a common step.
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.name:  # asked twice: leave at once
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def requested(self, checkpoints: Checkpoints, step: int) -> bool:
        if jax.process_count() > 1 and checkpoints.reached_preemption(step):
            self.name = "SIGTERM"
        return bool(self.name)
