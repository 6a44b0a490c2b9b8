"""IMITATE (arXiv 2310.07355): findings against multi-level channel tokens, impression against the pooled last stage.

Full recipe:  python -m medvlp_jax.main --config configs/imitate.py --workdir runs/imitate
              MIMIC-CXR, ResNet-50 at 224 px from ImageNet weights, Bio_ClinicalBERT frozen and cached, batch 1024.
              Before: python -m medvlp_jax.prepare mimic_cxr --root /data/mimic-cxr-jpg --reports /data/mimic-cxr
Without data: python -m medvlp_jax.main --config configs/imitate.py:demo --workdir runs/demo
              phantoms, a narrow ResNet at 96 px, two CPU cores, a few minutes.
Own folder:   python -m medvlp_jax.main --config configs/imitate.py:data=image_report_folder,small --workdir runs/own

Arguments (comma separated behind the colon):
  demo             the embedded data set, unless another is named, and sizes that two CPU cores train in minutes
  small            the demo's narrow trunk and text tower on any data set, for small data or small machines
  preset=released  what the public code computed; preset=fixed (default) what a careful engineer would do
  data=NAME        a data set made by `python -m medvlp_jax.prepare` (default mimic_cxr)
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("imitate", arg, model, recipe, small=small, released=released)


def model(config):
    """Section III of the paper: trunk, read branch, heads, losses."""
    config.model = dict(
        read=common.read_branch(draws=2),
        features=512,
        diagnosis_hidden=2048,
        text_hidden=1024,
    )
    common.resnet50(config)
    config.text.weights = "emilyalsentzer/Bio_ClinicalBERT"
    config.text.pooling = "cls"
    config.loss = dict(
        temperature_text=0.07,
        temperature_view=0.2,
        view_terms=True,
        prior=dict(kernel="exp", ratio=0.2, mass="batch_invariant", reference_batch=128, centre=False),
        duplicates="mask",
        group_size=0,
        mu_hold=30,
        mu_stop=50,
    )


def recipe(config):
    """Optimiser, schedule and augmentation of the `fixed` preset."""
    config.epochs = 21
    config.batch_size = 1024
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0
    config.image.augment = (
        "decode|views({views}, size={size}, crop_from=256, rotate=30, perspective=0.5, autocontrast=0.5)"
    )
    config.image.evaluate = "decode|center({size}, crop_from=256)"


def released(config):
    """What the public code computed; each line is one documented difference (see medvlp_jax/methods/imitate.py)."""
    config.text.missing = "space"
    config.loss.prior.mass = "released"
    common.groups(config, 128)
    config.loss.duplicates = "negative"
    config.model.read.mask_padding = False
    config.image.augment = (
        "decode|views({views}, size={size}, crop_from=256, hflip=0.5, vflip=0.5, rotate=30, perspective=0.5, "
        "autocontrast=0.5)"
    )
    config.optimizer.schedule = "warm_restarts"
    config.optimizer.restart_steps = 33341
    config.optimizer.final_learning_rate = 1e-8
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
    config.optimizer.decay_mask = "all"
    config.data.reshuffle = False


def small(config):
    """The small sizes that methods share (`common.small`), and IMITATE's own."""
    common.small(config)
    config.total_steps = 2700
    if config.preset == "fixed":  # in half the steps what AdamW needs 2,700 for
        config.total_steps = 1400
        config.optimizer.name, config.optimizer.learning_rate = "muon", 1e-2
    config.optimizer.rates = ("[a-z]+_head/.*=0.3",)  # of text and diagnosis; the read branch keeps the trunk's rate
    config.model.read.update(dict(keep=(0.5, 0.5, 0.5, 0.5), grid=6, tokens=96, hidden=128))
    config.model.diagnosis_hidden = 128
    config.model.text_hidden = 256
    config.loss.prior.update(dict(reference_batch=32, centre=config.preset == "fixed"))
