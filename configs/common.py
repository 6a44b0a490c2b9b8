"""What every config shares: the argument parser and the fields that all runs have."""

import difflib
from typing import Any

from ml_collections import ConfigDict

SHARED_FIELDS = (
    "seed",
    "total_steps",
    "batch_size",
    "log_every_steps",
    "checkpoint_every_steps",
    "eval_every_steps",
    "mesh.data",
    "mesh.fsdp",
    "data.name",
    "data.dir",
    "image.size",
    "text.weights",
)


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses the part behind the colon of `--config file.py:word,key=value`.

    A bare word switches a boolean on; values take the type of their default. `parse_arg("demo,preset=released",
    demo=False, preset="fixed")` gives `demo=True, preset="released"`.

    Raises: ValueError for an unknown word or a value of the wrong type, listing the known ones.
    """
    parsed = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, has_value, text = part.partition("=")
        if key not in defaults:
            known = ", ".join(f"{name} (default {value!r})" for name, value in defaults.items())
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown config argument {key!r}.{hint} Known: {known}.")
        default = defaults[key]
        if isinstance(default, bool):
            words = {"": True, "true": True, "1": True, "false": False, "0": False}
            if text.lower() not in words:
                raise ValueError(f"Config argument {key}={text!r} must be true or false.")
            parsed[key] = words[text.lower()]
        elif not has_value:
            raise ValueError(f"Config argument {key!r} needs a value: {key}={default!r}.")
        else:
            try:
                parsed[key] = type(default)(text)
            except ValueError as error:
                raise ValueError(f"Config argument {key}={text!r} must be {type(default).__name__}.") from error
    return ConfigDict(parsed)


def choose(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value` when it is one of `choices`. Raises: ValueError listing them."""
    if value not in choices:
        raise ValueError(f"Unknown {name} {value!r}. Choose one of {', '.join(choices)}.")
    return value


def base() -> ConfigDict:
    """Fields and defaults that every run has. Methods and presets overwrite values, they do not rename fields."""
    config = ConfigDict()
    config.seed = 0
    config.method = ""
    config.preset = "fixed"
    # total_steps=0 means epochs * examples // batch_size.
    config.epochs = 1
    config.total_steps = 0
    config.batch_size = 128
    config.log_every_steps = 50
    config.checkpoint_every_steps = 1000
    config.keep_checkpoints = 3
    # A process without a step for so long prints the stacks of its threads and ends, to be started again; 0: never.
    config.hang_seconds = 1800
    config.join_seconds = 300  # how long the processes of a run wait for each other at the start
    config.log_examples = False  # write the records that each step consumed to examples.jsonl
    config.eval_every_steps = 1000

    # -1: all devices that the other axis leaves over.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})

    # Encoders see the batch in this many parts, the loss sees all of it: exact without BatchNorm, else per part.
    config.micro_batches = 1
    # How losses over all pairs of a batch are tiled (medvlp_jax/losses/schedules.py): dense, chunked, ring or auto.
    config.pairs = ConfigDict({"schedule": "dense", "chunk": 2048, "budget_mib": 512})

    config.data = ConfigDict()
    config.data.name = "mimic_cxr"
    config.data.dir = "data"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.test_split = "test"
    config.data.reshuffle = True
    config.data.threads = 16
    config.data.workers = 0

    config.image = ConfigDict({"size": 224, "views": 2, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
    # Op strings of medvlp_jax.data.preprocess; {size} and {views} take the fields above.
    config.image.augment = ""
    config.image.evaluate = ""

    config.text = ConfigDict()
    config.text.weights = ""
    config.text.pooling = "cls"
    config.text.max_length = 256
    config.text.layers = 0  # keep only the first layers of the tower; 0: all
    config.text.missing = "mask"
    config.text.dtype = "float32"
    # True: frozen vectors are computed once and read from a cache. False: the tower runs inside every step.
    config.text.cache = True

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4
    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_mask = "matrices"
    config.optimizer.clip_norm = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 0
    config.optimizer.restart_steps = 0
    config.optimizer.final_learning_rate = 0.0
    # Every eval_every_steps on the validation split; and, behind training and with --mode eval, on the test split.
    config.evaluators = ("validation_loss", "retrieval", "zero_shot")
    config.final_evaluators = ("validation_loss", "retrieval", "zero_shot", "linear_probe", "knn", "grounding")
    config.eval_batch_size = 0  # 0: batch_size
    config.report = True  # write report.html behind training

    config.evaluation = ConfigDict()
    config.evaluation.data = ""  # score another prepared data set than the run's own (--mode eval)
    config.evaluation.section = ""  # text space of zero-shot and grounding; "": the method's choice
    config.evaluation.prompts = "ensemble"  # plain, ensemble, or the path of a JSON file
    config.evaluation.findings = ()  # labels that means are taken over; (): all with both classes
    config.evaluation.uncertain = "drop"  # drop, positive, negative
    config.evaluation.fractions = (1.0, 10.0, 100.0)  # percent of the training patients, for probes
    config.evaluation.seeds = 5
    config.evaluation.resamples = 1000
    config.evaluation.max_train = 50_000  # training images that probes may use; 0: all
    config.evaluation.allow_patient_overlap = False
    return config
