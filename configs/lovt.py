"""LoVT: regions of an image and sentences of its report, contrasted inside each pair, under a global contrast.

Full recipe:  python -m medvlp_jax.main --config configs/lovt.py --workdir runs/lovt
              MIMIC-CXR, ResNet-50 at 224 px (7x7 regions) from ImageNet weights, Bio_ClinicalBERT, upper half trained.
Without data: python -m medvlp_jax.main --config configs/lovt.py:demo --workdir runs/lovt
              phantoms, a narrow ResNet at 96 px (6x6 regions) and a small BERT, held, two CPU cores.

Arguments (comma separated behind the colon): `demo`, `small`, `preset=released`, `data=NAME` as in configs/imitate.py.
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("lovt", arg, model, recipe, small=small, released=released)


def model(config):
    """Attention pooling and two heads a side, one cross-attention; temperatures and weights are fixed."""
    config.model = dict(
        features=512,
        head=dict(image_hidden=2048, text_hidden=2048, init="kaiming_fan_out"),
        pool=dict(heads=8, mean_over_padding=False),
        mask_statistics=True,
    )
    common.resnet50(config)
    common.trained_text(config)
    config.text.sections = ("report",)
    config.text.draw = "swapped"
    config.text.units = "sentences"
    config.text.max_sentences = 32
    config.text.pooling = "max"
    config.text.max_length = 512
    config.loss = dict(
        temperature=0.1,
        image_to_text=0.75,
        text_to_image=0.25,
        local_temperature=0.3,
        region_weight=0.375,  # of each of the two directions
        sentence_weight=0.375,
        threshold=0.5,
        beta=1.0,
        smoothing="exponential",
        duplicates="mask",
        group_size=0,
    )


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    common.one_view(config, epochs=50, batch_size=256, learning_rate=1e-4)
    config.image.augment = (
        "decode|views({views}, size={size}, scale=(0.6, 1.0), ratio=(0.75, 1.3333), rotate=20, shift=0.1, "
        "zoom=(0.95, 1.05), brightness=0.4, contrast=0.4)"
    )
    config.image.evaluate = "decode|center({size})"
    config.optimizer.rates = common.LOWER_HALF_HELD


def released(config):
    """What the public code computed; each line is one documented difference (see medvlp_jax/methods/lovt.py)."""
    config.epochs = 100
    config.batch_size = 512  # 16 accumulated batches of 32
    config.model.pool.mean_over_padding = True
    config.model.mask_statistics = False
    config.image.augment = config.image.augment.removesuffix(")") + ", hflip=0.5)"
    config.loss.duplicates = "negative"
    common.groups(config, 32)
    config.optimizer.weight_decay = 1e-6
    config.optimizer.decay_mask = "all"
    config.optimizer.schedule = "waves"
    config.optimizer.periods = 50.0  # of two epochs
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0


def small(config):
    """The small sizes that methods share (`common.small`), and LoVT's own."""
    common.small_local(config)  # the paper's crops and brightness leave a narrow trunk without anything to learn from
    config.text.max_sentences = 10
    config.text.pooling = "max"
    config.model.head.update(dict(image_hidden=128, text_hidden=256))
    config.optimizer.periods = min(config.optimizer.periods, 7.0)  # of two epochs of the phantoms
