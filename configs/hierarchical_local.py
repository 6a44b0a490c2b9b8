"""Not a paper: IMITATE's hierarchy with LoVT's local terms, over a text tower that learns.

Channels of all stages meet the findings, the pooled last stage the impression, regions the sentences of the findings.

Full recipe:  python -m medvlp_jax.main --config configs/hierarchical_local.py --workdir runs/composed
              MIMIC-CXR, ResNet-50 at 224 px from ImageNet weights, Bio_ClinicalBERT, upper half trained.
Without data: python -m medvlp_jax.main --config configs/hierarchical_local.py:demo --workdir runs/composed
              phantoms, a narrow ResNet at 96 px and a small BERT, held, two CPU cores.

Each term can be left out (--config.loss.terms.local.weight=0); other terms and what they need: docs/methods.md.
Arguments (comma separated behind the colon): `demo`, `small`, `data=NAME` as in configs/imitate.py. There is no
`preset=released`: nobody released this.
"""

from configs import common


def get_config(arg=None):
    """The locked config of one run."""
    return common.of_method("composed", arg, model, recipe, small=small)


def model(config):
    """The terms, and a head for everything that they compare."""
    config.model = dict(
        features=512,
        head=dict(image_hidden=2048, text_hidden=1024, use_bias=True, init="torch", norm=True),
        read=common.read_branch(draws=1),
    )
    common.resnet50(config)
    common.trained_text(config)
    config.text.sections = ("findings", "impression")
    config.text.units = "sentences"
    config.text.max_sentences = 32
    config.text.pooling = "mean"
    pairs = dict(kind="pairs", weight=1.0, temperature=0.1, image_to_text=0.5, text_to_image=0.5, duplicates="mask")
    config.loss = dict(
        terms=dict(
            read=dict(**pairs, image="levels", text="findings"),
            diagnosis=dict(**pairs, image="pooled", text="impression"),
            local=dict(
                kind="sentences",
                weight=0.375,  # of each of its four parts
                text="findings",
                temperature=0.3,
                threshold=0.5,
                beta=1.0,
                smoothing="exponential",
            ),
        ),
        group_size=0,
    )


def recipe(config):
    """Optimiser, schedule and augmentation."""
    common.one_view(config, epochs=50, batch_size=256, learning_rate=1e-4)
    config.optimizer.rates = common.LOWER_HALF_HELD


def small(config):
    """The small sizes that methods share (`common.small`), and those of the read branch and the heads."""
    common.small_local(config)
    config.text.max_sentences = 10
    config.model.read.update(dict(keep=(0.5, 0.5, 0.5, 0.5), grid=6, tokens=96, hidden=128))
    config.model.head.update(dict(image_hidden=128, text_hidden=256))
