"""ConVIRT (arXiv 2010.00747): one sentence against one view, image-to-text weighted higher, upper half of BERT trained.

Full recipe:  python -m medvlp_jax.main --config configs/convirt.py --workdir runs/convirt
              MIMIC-CXR, ResNet-50 at 224 px from ImageNet weights, Bio_ClinicalBERT.
Without data: python -m medvlp_jax.main --config configs/convirt.py:demo --workdir runs/convirt
              phantoms, a narrow ResNet at 96 px, MiniLM held (the recipe above trains its tower), two CPU cores.

Arguments (comma separated behind the colon): `demo`, `small`, `data=NAME` as in configs/imitate.py, and
  preset=released | mgca_variant | fixed (default)   there is no official code; see medvlp_jax/methods/convirt.py
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("convirt", arg, model, recipe, small=small, released=released, mgca_variant=mgca_variant)


def model(config):
    """Two towers with an MLP each; temperature and direction weights are fixed."""
    config.model = dict(
        features=512, head=dict(image_hidden=2048, text_hidden=2048, use_bias=True, init="kaiming_fan_out", norm=False)
    )
    common.resnet50(config)
    common.trained_text(config)
    config.text.sections = ("report",)
    config.text.draw = "sentence"
    config.text.pooling = "max"
    config.loss = dict(temperature=0.1, image_to_text=0.75, text_to_image=0.25, duplicates="mask", group_size=0)


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    common.one_view(config, epochs=50, batch_size=256, learning_rate=1e-4)
    config.image.augment = (
        "decode|views({views}, size={size}, scale=(0.6, 1.0), rotate=20, shift=0.1, zoom=(0.95, 1.05), brightness=0.4, "
        "contrast=0.4)"
    )
    config.optimizer.rates = common.LOWER_HALF_HELD


def released(config):
    """philip-mueller/lovt's version; each line is one documented difference (see medvlp_jax/methods/convirt.py)."""
    config.epochs = 500
    config.batch_size = 32
    config.text.dtype = "float32"
    config.image.augment = config.image.augment.removesuffix(")") + ", hflip=0.5)"
    config.loss.duplicates = "negative"
    common.groups(config, 32)
    config.optimizer.name = "adam"
    config.optimizer.weight_decay = 1e-6
    config.optimizer.decay_mask = "all"
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0


def mgca_variant(config):
    """The version inside HKU-MedAI/MGCA, two devices of 72; each line is one documented difference."""
    config.epochs = 50
    config.batch_size = 144
    config.text.draw = "whole"
    config.text.dtype = "float32"
    config.image.augment = "decode|views({views}, size={size}, crop_from=256)"
    config.model.features = 128
    config.loss.update(dict(temperature=0.07, image_to_text=1.0, text_to_image=1.0, duplicates="negative"))
    common.groups(config, 72)
    config.optimizer.learning_rate = 2e-5
    config.optimizer.decay_mask = "all"
    config.optimizer.warmup_steps = 31_560  # 20 of 50 epochs, of 1,578 steps each on MIMIC-CXR
    config.optimizer.clip_norm = 0.0


def small(config):
    """The small sizes that methods share (`common.small`), and ConVIRT's own."""
    common.small_held_text(config)  # the paper's crops and brightness leave a narrow trunk nothing to learn from
    common.impressions(config)
    config.total_steps *= 2  # a sentence at a time teaches less than a report; a step costs less than half of IMITATE's
    config.model.head.update(dict(image_hidden=128, text_hidden=256))
