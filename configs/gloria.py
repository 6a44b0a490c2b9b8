"""GLoRIA (Huang et al., ICCV 2021): sentences with images, words with regions; both towers trained.

Full recipe:  python -m medvlp_jax.main --config configs/gloria.py --workdir runs/gloria
              MIMIC-CXR, ResNet-50 at 299 px from ImageNet weights, Bio_ClinicalBERT trained along.
Without data: python -m medvlp_jax.main --config configs/gloria.py:demo --workdir runs/gloria
              phantoms, a narrow ResNet at 96 px and a small BERT, held, two CPU cores.

Arguments (comma separated behind the colon): `demo`, `small`, `preset=released`, `data=NAME` as in configs/imitate.py.
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("gloria", arg, model, recipe, small=small, released=released)


def model(config):
    """A head for the image and one for its regions, into the space of the text tower; two losses, weighed alike."""
    config.model = dict(
        features=0,  # 0: the width of the text tower, whose vectors are compared as they are
        last_layers=4,  # of the text tower, that are summed
        upsample=299,  # side of what the trunk sees; 0: views as they are
        # level: of the trunk, that regions are made from. tokens: words or cls_and_words, in training. text_mean: real
        # or padded positions. pool: max or logsumexp of words, in evaluation.
        local=dict(level="stage3", tokens="words", text_mean="real", pool="max"),
    )
    common.resnet50(config)
    common.trained_text(config)
    config.text.sections = ("report",)
    config.text.draw = "sentence"
    config.text.units = "words"
    config.text.pooling = "mean"
    config.text.max_length = 97
    config.loss = dict(
        temperature=0.1,
        local=dict(
            attention=4.0,
            similarity=5.0,
            contrast=10.0,
            form="double_softmax",
            length_normalised=False,
            images_per_tile=16,
            texts_per_tile=16,
        ),
        local_weight=1.0,
        global_weight=1.0,
        duplicates="mask",
        group_size=0,
    )


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    common.one_view(config, epochs=50, batch_size=96, learning_rate=5e-5)


def released(config):
    """What the public code computed; each line is one documented difference (see medvlp_jax/methods/gloria.py)."""
    config.batch_size = 48
    config.text.sections = ("impression",)
    config.text.split = "gloria"
    config.image.mean = config.image.std = (0.5,) * 3
    config.image.augment = "decode|views({views}, size={size}, crop_from=256)"
    config.model.local.tokens = "cls_and_words"
    config.model.local.text_mean = "padded"
    config.loss.duplicates = "negative"
    common.groups(config, 48)
    config.optimizer.name = "adam"
    config.optimizer.betas = (0.5, 0.999)
    config.optimizer.weight_decay = 1e-6
    config.optimizer.decay_mask = "all"
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.25


def small(config):
    """The small sizes that methods share (`common.small`), and GLoRIA's own: 36 regions, texts of 64 tokens."""
    common.small_local(config)
    config.model.features = 0
    config.model.last_layers = 2
    config.model.upsample = 0
    config.text.max_length = 64
