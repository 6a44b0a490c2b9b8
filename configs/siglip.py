"""SigLIP (arXiv 2303.15343) on chest X-rays: pairwise sigmoid loss, learnt scale and bias, both towers trained.

Full recipe:  python -m medvlp_jax.main --config configs/siglip.py --workdir runs/siglip
              MIMIC-CXR, ResNet-50 at 224 px from ImageNet weights, Bio_ClinicalBERT trained along, batch 1024.
Without data: python -m medvlp_jax.main --config configs/siglip.py:demo --workdir runs/siglip
              phantoms, a narrow ResNet at 96 px, MiniLM held (the recipe above trains its tower), two CPU cores.

Arguments (comma separated behind the colon): `demo`, `small`, `data=NAME` as in configs/imitate.py, and
  preset=released | vit | fixed (default)   vit: `fixed` with a ViT-B/16 for the ResNet-50
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("siglip", arg, model, recipe, small=small, released=released, vit=common.vit)


def model(config):
    """Two towers with a linear layer each, learnt scale and bias."""
    config.model = dict(
        features=512,
        head=dict(image_hidden=0, text_hidden=0, use_bias=True, init="inverse_root", norm=False),
        logits=dict(temperature=0.1, highest=0.0, bias=-10.0),
    )
    common.resnet50(config)
    common.trained_text(config)
    config.text.sections = ("report",)
    config.loss = dict(duplicates="mask", group_size=0)


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    common.one_view(config, epochs=20, batch_size=1024, learning_rate=1e-4)
    config.optimizer.warmup_steps = 200


def released(config):
    """What the public code computed; each line is one documented difference (see medvlp_jax/methods/siglip.py)."""
    config.total_steps = 5000
    config.batch_size = 512
    config.text.max_length = 16
    config.text.dtype = "float32"
    config.image.augment = "decode|views({views}, size={size}, crop_from=256, hflip=0.5)"
    config.loss.duplicates = "negative"
    config.model.logits.bias = -2.71
    config.model.bn.scope = "frozen"
    config.optimizer.rates = ("trunk/.*=0",)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_mask = "all"
    config.optimizer.warmup_steps = 150


def small(config):
    """The small sizes that methods share (`common.small`); there is no pretrained trunk to hold: it learns."""
    common.small_held_text(config)
    config.model.bn.scope = "global"
