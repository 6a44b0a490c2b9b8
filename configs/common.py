"""What every config shares: the argument parser and the fields that all runs have."""

import difflib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

HELD_EMBEDDINGS = "text_tower/(word|position|token_type|norm)/.*=0"
LOWER_HALF_HELD = (HELD_EMBEDDINGS, "text_tower/layer_[0-5]/.*=0")  # of a BERT of twelve layers
HELD_TEXT = "text_tower/.*=0"
SLOW_HEADS = "[a-z]+_head/.*=0.1"  # at the trunk's rate, heads with BatchNorm leave batches of 32 hard to start from
# What the phantoms show. Lung Opacity and Pneumonia are judgements in their reports; no picture decides them.
RENDERED = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
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


def of_method(
    method: str,
    arg: str | None,
    *parts: Callable[[ConfigDict], None],
    small: Callable[[ConfigDict], None],
    **presets: Callable[[ConfigDict], None],
) -> ConfigDict:
    """The locked config of one run: `base`, then every part, then the preset asked for, then the small sizes.

    Args: arg: what every method's config takes: `demo`, `small`, `preset`, `data`. parts: model and recipe of the
      `fixed` preset. presets: what the others change.
    Raises: ValueError as `parse_arg`, or for another preset.
    """
    asked = parse_arg(arg, demo=False, small=False, preset="fixed", data="")
    choose("preset", asked.preset, ("fixed", *presets))
    config = base()
    config.method, config.preset = method, asked.preset
    config.data.name = asked.data or ("cxr_phantom" if asked.demo else "mimic_cxr")
    for part in parts:
        part(config)
    if asked.preset in presets:
        presets[asked.preset](config)
    if asked.demo or asked.small:
        small(config)
    return config.lock()


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
    config.data.memory_mib = 0  # keep decoded training images in memory up to this size, in every process
    config.data.workers = 0

    config.image = ConfigDict({"size": 224, "views": 2, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
    # Op strings of medvlp_jax.data.preprocess; {size} and {views} take the fields above.
    config.image.augment = ""
    config.image.evaluate = ""

    config.text = ConfigDict()
    config.text.weights = ""
    # What images are aligned with: findings, impression, report; and the parts that the last is made of, in order.
    config.text.sections = ("findings", "impression")
    config.text.report = ("findings", "impression")
    # What a training step reads of a text: whole, swapped (whole, sentences change places), or one sentence drawn anew.
    config.text.draw = "whole"
    # What the pieces of a text are told apart by, for methods that compare parts: "" (nothing), words or sentences.
    config.text.units = ""
    config.text.max_sentences = 0  # most sentences of a text, with those units; 0: as many as max_length holds
    config.text.split = "simple"  # rule of sentences (medvlp_jax/data/sentences.py); others clean whole texts, too
    config.text.trained = False  # the tower learns, as a part of the model; False: it is frozen
    config.text.pooling = "cls"
    config.text.max_length = 256
    config.text.layers = 0  # keep only the first layers of the tower; 0: all
    config.text.missing = "mask"
    config.text.dtype = "float32"
    config.text.remat = False  # a tower that is trained computes its layers again in the backward pass
    # True: frozen vectors are computed once and read from a cache. False: the tower runs inside every step, as one that
    # is trained must.
    config.text.cache = True

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, adam, sgd or muon
    config.optimizer.learning_rate = 2e-4
    # "REGEX=FACTOR" over parameter paths, first match: rates that differ; 0 holds parameters as they are.
    config.optimizer.rates = ()
    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_mask = "matrices"
    config.optimizer.clip_norm = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 0
    config.optimizer.restart_steps = 0
    config.optimizer.restart_factor = 2
    config.optimizer.periods = 0.0  # of the schedule `waves`, in the whole run
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
    config.evaluation.max_loss = 128  # examples that the validation loss is taken of, in whole batches; 0: all
    config.evaluation.allow_patient_overlap = False
    return config


def resnet50(config: ConfigDict) -> None:
    """The trunk of most methods: ResNet-50 from ImageNet weights."""
    config.model.trunk = dict(
        depth="50", width=64, stem="imagenet", in_channels=3, remat=False, weights="timm/resnet50.tv_in1k"
    )
    config.model.bn = dict(scope="global", group_size=0, momentum=0.9)
    config.model.dtype = "bfloat16"


def vit(config: ConfigDict) -> None:
    """A ViT-B/16 from DeiT's weights in place of the ResNet."""
    weights = "timm/deit_base_patch16_224.fb_in1k"
    config.model.trunk = dict(vit="B/16", image=config.image.size, in_channels=3, remat=False, weights=weights)


def read_branch(draws: int) -> dict[str, Any]:
    """IMITATE's read branch, section III of its paper, with so many draws of channels per view."""
    return dict(
        keep=(0.25, 0.15, 0.10, 0.10),
        grid=16,
        tokens=512,
        heads=4,
        hidden=256,
        draws=draws,
        replace=True,
        mask_padding=True,
        eval_draws=4,
        eval_seed=0,
    )


def groups(config: ConfigDict, size: int) -> None:
    """Negatives and BatchNorm statistics of `size` examples: those of one device of a released run."""
    config.loss.group_size = size
    config.model.bn.scope, config.model.bn.group_size = "group", size


def one_view(config: ConfigDict, *, epochs: int, batch_size: int, learning_rate: float) -> None:
    """The recipe of methods with one view of an image: light augmentation, warm-up, clipped gradients."""
    config.epochs, config.batch_size = epochs, batch_size
    config.image.views = 1
    config.image.augment = "decode|views({views}, size={size}, crop_from=256, rotate=15, contrast=0.2)"
    config.image.evaluate = "decode|center({size}, crop_from=256)"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0


def trained_text(config: ConfigDict, weights: str = "emilyalsentzer/Bio_ClinicalBERT") -> None:
    """A text tower that learns along, from these weights; of every layer the backward pass keeps the input only."""
    config.text.weights, config.text.trained, config.text.cache = weights, True, False
    config.text.dtype, config.text.remat = config.model.dtype, True


def is_phantom(config: ConfigDict) -> bool:
    """Whether a run reads phantoms, of whatever settings."""
    return config.data.name.split("/")[0] == "cxr_phantom"


def small(config: ConfigDict) -> None:
    """Sizes that two CPU cores train in minutes: one ResNet-18 block per stage, width 16, or a ViT of three layers; the
    last map is 6x6.

    A frozen text tower is the MiniLM wheel where it is installed; one that is trained is the small BERT of the
    phantoms, or of another data set's own reports. Rate and decay are AdamW's: with `adam` and `sgd`, where decay is a
    part of the gradient, it stays the preset's.
    """
    phantom = is_phantom(config)
    config.total_steps = 3400
    config.batch_size = 32
    config.log_every_steps = 100
    config.checkpoint_every_steps = 1000
    config.eval_every_steps = 1000
    config.eval_batch_size = 64
    config.data.threads = 2
    config.data.memory_mib = 1024
    config.image.size = 96
    config.image.mean = (0.5,)
    config.image.std = (0.25,)
    config.image.augment = "decode|views({views}, size={size}, rotate=6, zoom=(0.93, 1.07), shift=0.035, contrast=0.2)"
    config.image.evaluate = "decode|center({size})"
    config.text.weights = "phantom" if phantom and config.text.trained else "auto"
    config.text.pooling = "mean"
    config.text.max_length = 128
    config.model.dtype = config.text.dtype = "float32"
    config.text.remat = False
    sizes = dict(vit="Ti/16", width=64, layers=3, heads=2, hidden=128, patch=16, image=config.image.size)
    if "vit" not in config.model.trunk:
        sizes = dict(
            depth="18",
            width=16,
            stem="stride4",
            stage_sizes=(1, 1, 1, 1),
            widths=(16, 32, 64, 64),
            strides=(1, 2, 2, 1),
            zero_init_last_bn=True,
        )
    config.model.trunk.update(dict(**sizes, in_channels=1, weights=""))
    config.model.features = 128
    config.optimizer.learning_rate = 3e-3
    if config.optimizer.name == "adamw":
        config.optimizer.weight_decay = 1.0
    config.optimizer.warmup_steps = 0 if config.preset == "released" else 50
    if phantom:
        config.evaluation.findings = RENDERED
    if config.loss.group_size:
        groups(config, 32)


def small_local(config: ConfigDict) -> None:
    """`small` for methods with heads over words or sentences: the text tower runs in the step and is held, the heads
    learn slower than the trunk, and decay is less (docs/methods.md, what this was worth)."""
    small(config)
    config.total_steps = 2400
    config.optimizer.rates = (HELD_TEXT, SLOW_HEADS)
    if config.optimizer.name == "adamw":
        config.optimizer.weight_decay = 0.2
    impressions(config)


def impressions(config: ConfigDict) -> None:
    """The report of a phantom is its impression to methods that tell words or sentences apart, or draw one: those of
    findings say the same in twice the tokens, and what every second image shares."""
    if is_phantom(config) and config.text.sections == ("report",):
        config.text.report = ("impression",)
        config.text.max_length = 64


def small_held_text(config: ConfigDict) -> None:
    """`small` for methods that read one vector of a text: the text tower is held and its vectors are cached.

    Few thousand reports teach a tower less than it knows already, and a step without it is cheaper (docs/methods.md).
    The full recipes train it, as their papers do.
    """
    config.text.trained, config.text.cache = False, True
    small(config)
    config.optimizer.rates = ()
