"""M-FLAG (arXiv 2307.08347): frozen language model, alignment without negatives, orthonormal image latent.

Full recipe:  python -m medvlp_jax.main --config configs/m_flag.py --workdir runs/m_flag
              MIMIC-CXR, ResNet-50 at 224 px from ImageNet weights, BiomedVLP-CXR-BERT frozen and cached, batch 1024.
Without data: python -m medvlp_jax.main --config configs/m_flag.py:demo --workdir runs/m_flag
              phantoms, a narrow ResNet at 96 px, two CPU cores.

Arguments (comma separated behind the colon): `demo`, `small`, `preset=released`, `data=NAME` as in configs/imitate.py.
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("m_flag", arg, model, recipe, small=small, released=released)


def model(config):
    """Two towers with an MLP each, the text tower frozen; two terms."""
    config.model = dict(
        features=1024, head=dict(image_hidden=2048, text_hidden=2048, use_bias=True, init="torch", norm=True)
    )
    common.resnet50(config)
    config.text.weights = "microsoft/BiomedVLP-CXR-BERT-general"
    config.text.sections = ("report",)
    config.text.report = ("impression", "findings")
    config.text.max_length = 512
    config.loss = dict(off_diagonal=0.0051, centre=False, group_size=0)


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    common.one_view(config, epochs=50, batch_size=1024, learning_rate=2e-5)
    config.image.mean = config.image.std = (0.5,) * 3
    config.image.augment = (
        "decode|views({views}, size={size}, crop_from=256, rotate=10, perspective=0.5, autocontrast=0.5)"
    )
    config.optimizer.clip_norm = 0.0


def released(config):
    """What the public code computed; each line is one documented difference (see medvlp_jax/methods/m_flag.py)."""
    config.epochs = 51
    config.batch_size = 512
    config.image.augment = config.image.augment.replace("rotate=10", "rotate=90")
    common.groups(config, 512)
    config.optimizer.schedule = "warm_restarts"
    config.optimizer.restart_steps = 2083
    config.optimizer.restart_factor = 1
    config.optimizer.final_learning_rate = 1e-8
    config.optimizer.decay_mask = "all"
    config.optimizer.warmup_steps = 0


def small(config):
    """The small sizes that methods share (`common.small`), and M-FLAG's own."""
    common.small(config)
    config.model.head.update(dict(image_hidden=128, text_hidden=256))
