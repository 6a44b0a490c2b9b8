"""CLIP (arXiv 2103.00020) on chest X-rays: the whole report against the image, learnt temperature, both towers trained.

Full recipe:  python -m medvlp_jax.main --config configs/clip.py --workdir runs/clip
              MIMIC-CXR, ResNet-50 at 224 px from ImageNet weights, Bio_ClinicalBERT trained along.
Without data: python -m medvlp_jax.main --config configs/clip.py:demo --workdir runs/clip
              phantoms, a narrow ResNet at 96 px, MiniLM held (the recipe above trains its tower), two CPU cores.

Arguments (comma separated behind the colon): `demo`, `small`, `data=NAME` as in configs/imitate.py, and
  preset=released | vit | fixed (default)   vit: `fixed` with a ViT-B/16 for the ResNet-50
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("clip", arg, model, recipe, small=common.small_held_text, released=released, vit=common.vit)


def model(config):
    """Two towers with a matrix each, one learnt scale."""
    config.model = dict(
        features=512,
        head=dict(image_hidden=0, text_hidden=0, use_bias=False, init="inverse_root", norm=False),
        logits=dict(temperature=0.07, highest=100.0),
    )
    common.resnet50(config)
    common.trained_text(config)
    config.text.sections = ("report",)
    config.loss = dict(duplicates="mask", group_size=0)


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    common.one_view(config, epochs=20, batch_size=128, learning_rate=5e-5)


def released(config):
    """What the public code computed; each line is one documented difference (see medvlp_jax/methods/clip.py)."""
    config.epochs = 4
    config.batch_size = 16
    config.text.sections = ("impression",)
    config.text.missing = "placeholder"
    config.text.max_length = 77
    config.text.dtype = "float32"
    config.image.mean, config.image.std = (0.39799,) * 3, (0.32721,) * 3
    config.image.augment = "decode|center({size})"
    config.image.evaluate = "decode|center({size})"
    config.loss.duplicates = "negative"
    common.groups(config, 16)
    config.model.logits.highest = 0.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
