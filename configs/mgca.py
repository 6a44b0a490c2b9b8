"""MGCA (Wang et al., NeurIPS 2022): reports with images, words with patches, prototypes; both towers trained.

Full recipe:  python -m medvlp_jax.main --config configs/mgca.py --workdir runs/mgca
              MIMIC-CXR, ResNet-50 at 299 px from ImageNet weights, six layers of Bio_ClinicalBERT trained along.
Without data: python -m medvlp_jax.main --config configs/mgca.py:demo --workdir runs/mgca
              phantoms, a narrow ResNet at 96 px and a small BERT, held, two CPU cores.

Arguments (comma separated behind the colon): `demo`, `small`, `data=NAME` as in configs/imitate.py, and
  preset=released | vit | released_vit | fixed (default)   vit: a ViT-B/16 for the ResNet-50
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    presets = {"released": released, "vit": vit, "released_vit": released_vit}
    return common.of_method("mgca", arg, model, recipe, small=small, **presets)


def model(config):
    """Four heads into one space, prototypes in it; three losses, weighed alike."""
    config.model = dict(
        features=128,
        prototypes=500,
        upsample=299,  # side of what the trunk sees; 0: views as they are
        head=dict(image_hidden=2048, text_hidden=2048, region_hidden=2048, word_hidden=2048),
        # level: of the trunk, that patches are made from; the rest: what the released code does otherwise.
        local=dict(level="stage3", following_attention=False, drop_unclosed=False, mask_statistics=True),
    )
    common.resnet50(config)
    common.trained_text(config)
    config.text.layers = 6
    config.text.sections = ("report",)
    config.text.report = ("impression", "findings")
    config.text.units = "words"
    config.text.max_length = 112
    config.loss = dict(
        temperature=0.07,
        tokens=dict(temperature=0.1, attention_temperature=0.1, padding_is_negative=False, normalise_seen_words=True),
        prototypes=dict(temperature=0.2, epsilon=0.05, iterations=3, straight_through=False),
        freeze_epochs=1,
        weights=dict(pairs=1.0, tokens=1.0, prototypes=1.0),
        duplicates="mask",
        group_size=0,
    )


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    common.one_view(config, epochs=50, batch_size=144, learning_rate=2e-5)
    config.optimizer.clip_norm = 0.0


def released(config):
    """What the public code computed, two devices of 72; each line is one documented difference (see
    medvlp_jax/methods/mgca.py)."""
    config.text.split = "gloria"
    config.text.dtype = "float32"
    config.image.mean = config.image.std = (0.5,) * 3
    config.image.augment = "decode|views({views}, size={size}, crop_from=256)"
    config.model.local.update(dict(following_attention=True, drop_unclosed=True, mask_statistics=False))
    config.loss.tokens.padding_is_negative = True
    config.loss.prototypes.straight_through = True
    config.loss.duplicates = "negative"
    common.groups(config, 72)
    config.optimizer.decay_mask = "all"
    config.optimizer.warmup_steps = 31_560  # 20 of 50 epochs, of 1,578 steps each on MIMIC-CXR
    config.optimizer.final_learning_rate = 1e-8


def vit(config):
    """`fixed` with a ViT-B/16 in place of the ResNet; the attention of its class token weighs patches."""
    common.vit(config)
    config.model.trunk.attention = True
    config.model.local.level = "patches"
    config.model.upsample = 0


def released_vit(config):
    """`released` with the ViT: what patches see of the report is not normalised."""
    released(config)
    vit(config)
    config.loss.tokens.normalise_seen_words = False


def small(config):
    """The small sizes that methods share (`common.small`), and MGCA's own: 36 patches, a prototype per example."""
    common.small_local(config)
    config.total_steps = 2000
    config.text.layers = 0
    config.model.upsample = 0
    config.model.prototypes = config.batch_size
    config.model.head.update(dict(image_hidden=128, text_hidden=256, region_hidden=128, word_hidden=256))
