"""A model seen by the evaluators: features of whole splits, computed once per model and shared by all protocols."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from medvlp_jax import build, compiler, evaluators, sharding, trained
from medvlp_jax import step as steps
from medvlp_jax.data import pipeline, preprocess
from medvlp_jax.data.record_ids import check_disjoint
from medvlp_jax.data.records import RecordSource
from medvlp_jax.evaluators import Context, Features, Result, Settings

NOT_FIELDS = ("image", "_ids", "_mask", "_segment", "_embedding")  # how the names of pixels, tokens and vectors end
PIXEL_SIDE = 48  # of the views that stand for raw pixels


class Scorer:
    """Compiles the embedding and loss functions of a run once and scores any state with them.

    Args: parts: of the run, or of the run on another data set. trained_on: what the run learnt from, in that case.
    Raises: ValueError for an unknown evaluator.
    """

    def __init__(self, parts: build.Parts, trained_on: RecordSource | None = None):
        self.parts, self.trained_on = parts, trained_on
        model, method, config, tower = parts.model, parts.method, parts.config, parts.step_tower
        for name in (*config.evaluators, *config.final_evaluators):
            evaluators.get(name)

        def embed(variables, frozen, batch, with_aligned, with_text, with_regions):
            image = model.apply(variables, batch["image"], method="embed_image")
            aligned, text = image.aligned if with_aligned else {}, {}
            if with_text:
                batch = steps.with_text_vectors(batch, tower, frozen)
                text = model.apply(variables, batch, method="embed_text").aligned
            return {
                "image": {section: x_BxVxD[:, 0] for section, x_BxVxD in aligned.items()},
                "text": text,
                "pooled": image.pooled_BxVxC[:, 0],
                "pixels": _small(batch["image"][:, 0, :, :, 0]),
                "regions": {s: x[:, 0] for s, x in image.regions.items()} if with_regions else {},
                "fields": {k: v for k, v in batch.items() if not k.endswith(NOT_FIELDS)},
                "mask": batch["_mask"],
            }

        def local_scores(variables, batch, text_local):
            image = model.apply(variables, batch["image"][:, :1], method="embed_image")
            return method.scores(image.local, text_local, config), batch["_mask"]

        def terms(variables, frozen, batch, epoch):
            batch = steps.with_text_vectors(batch, tower, frozen)
            embeddings = model.apply(variables, batch, train=False)
            loss, terms = method.loss(embeddings, batch, config, epoch, parts.sweep)
            return {"loss": loss, **terms}, jnp.sum(batch["_mask"])

        everywhere = sharding.replicated(parts.mesh)
        self._embed = compiler.jit(embed, static_argnums=(3, 4, 5), out_shardings=everywhere)
        self._terms = compiler.jit(terms, out_shardings=everywhere)
        self._local_scores = compiler.jit(local_scores, out_shardings=everywhere)
        self._read_texts = trained.text_reader(model, config, parts.tower, places=everywhere)
        self._view = trained.evaluation_view(config)

    def __call__(
        self, state: dict[str, Any], split: str, names: Sequence[str], *, baselines: bool = False
    ) -> dict[str, Result]:
        """Results of the evaluators `names` for `state` on `split`, by evaluator."""
        context = self.context(state, split, names, baselines=baselines)
        return {name: evaluators.get(name)(context) for name in names}

    def context(
        self, state: dict[str, Any], split: str, names: Sequence[str] = (), *, baselines: bool = False
    ) -> Context:
        """What evaluators see of `state`; features are computed when first asked for and kept while it lives."""
        settings = self.parts.config.evaluation
        variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
        with_regions = "grounding" in names

        @functools.cache
        def features(name: str) -> Features:
            scored = name == split  # probes need no texts of what they learn from, and one vector of its images
            validation = name == self.parts.config.data.eval_split
            return self._features(
                variables,
                name,
                with_aligned=scored or validation,
                # Of the validation split no evaluator needs them; where they cost nothing, the program is then the one
                # that scores this split during training.
                with_text=scored or (validation and self.parts.config.text.cache),
                with_regions=scored and with_regions,
            )

        train = self.parts.config.data.train_split
        if settings.max_train and len(self.parts.train) > settings.max_train:
            train = f"{train.split('[')[0]}[:{settings.max_train}]"
        return Context(
            features=features,
            terms=lambda name: self._loss_terms(state, variables, name),
            embed_texts=lambda texts: self._read_texts(variables, texts).aligned,
            local_scores=lambda name, texts: self._score_locally(variables, name, texts),
            record=self._record,
            view_mask=lambda mask_HxW: self._view(mask_HxW.astype(np.uint8) * 255)[..., 0] > 127,
            split=split,
            validation_split=self.parts.config.data.eval_split,
            train_split=train,
            settings=Settings(
                **{name: settings[name] for name in ("section", "prompts", "uncertain", "seeds", "resamples")},
                fractions=tuple(settings.fractions),
                findings=tuple(settings.findings),
            ),
            baselines=baselines,
        )

    def check_patients(self, split: str) -> int:
        """Patients of `split` that training has seen. Raises: ValueError when there are any, unless allowed."""
        config = self.parts.config
        learnt_from = [] if self.trained_on is None else [self.trained_on]
        if not (config.evaluation.data and config.data.train_split == split):  # a set for evaluation alone
            learnt_from.append(self.parts.train)
        allow, scored = config.evaluation.allow_patient_overlap, self.parts.source(split)
        return max((check_disjoint(source, scored, allow=allow) for source in learnt_from), default=0)

    def _features(
        self, variables: Any, split: str, *, with_aligned: bool, with_text: bool, with_regions: bool
    ) -> Features:
        parts: dict[str, list] = {}
        regions: list[dict[str, NDArray]] = []
        boxed: list[NDArray] = []
        start, total, wanted = 0, len(self.parts.source(split)), (with_aligned, with_text, with_regions)
        with tqdm(total=total, desc=f"features of {split}", unit="image", disable=None, leave=False) as bar:
            for batch in self._batches(split, self.parts.evaluate):
                out = jax.device_get(self._embed(variables, self.parts.frozen, batch, *wanted))
                mask_B = out.pop("mask")
                has_boxes_B = mask_B & out["fields"].get("has_boxes", np.zeros(len(mask_B), bool))
                regions.append({s: x[has_boxes_B] for s, x in out.pop("regions").items()})
                boxed.append(start + np.flatnonzero(has_boxes_B[mask_B]))
                for name, value in out.items():
                    parts.setdefault(name, []).append(jax.tree.map(lambda x, m=mask_B: x[m], value))
                start += int(mask_B.sum())
                bar.update(int(mask_B.sum()))
        whole = {name: jax.tree.map(lambda *x: np.concatenate(x), *rows) for name, rows in parts.items()}
        return Features(
            image=whole["image"],
            text=whole["text"],
            pooled_NxC=whole["pooled"],
            pixels_NxP=whole["pixels"],
            regions=jax.tree.map(lambda *x: np.concatenate(x), *regions) if with_regions else {},
            boxed_M=np.concatenate(boxed) if with_regions else np.zeros(0, np.int64),
            fields=whole["fields"],
        )

    def _loss_terms(self, state: Any, variables: Any, split: str) -> Iterator[tuple[dict[str, float], int]]:
        config = self.parts.config
        epoch = jnp.floor(state["step"].astype(jnp.float32) * (config.batch_size / len(self.parts.train)))
        most, seen = config.evaluation.max_loss, 0
        for batch in self._batches(split, self.parts.augment):
            terms, count = jax.device_get(self._terms(variables, self.parts.frozen, batch, epoch))
            yield {name: float(value) for name, value in terms.items()}, int(count)
            seen += int(count)
            if most and seen >= most:
                return

    def _score_locally(self, variables: Any, split: str, texts: Sequence[str]) -> NDArray | None:
        if self.parts.method.scores is None:
            return None
        text_local = self._read_texts(variables, texts, local=True).local
        rows = []
        for batch in self._batches(split, self.parts.evaluate):
            score_BxT, mask_B = jax.device_get(self._local_scores(variables, batch, text_local))
            rows.append(score_BxT[mask_B])
        return np.concatenate(rows)

    def _record(self, split: str, index: int) -> dict[str, Any]:
        record = self.parts.source(split)[index]
        return {**record, "image_shape": preprocess.decode_grey(record["image"]).shape}

    def _batches(self, split: str, preprocess_fn: Callable) -> Iterator[dict[str, Any]]:
        parts = self.parts
        batches = pipeline.eval_batches(
            parts.source(split),
            preprocess_fn,
            batch_size=parts.config.eval_batch_size or parts.config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=parts.config.data.threads,
        )
        with pipeline.device_prefetch(batches, sharding.batch_sharding(parts.mesh)) as device_batches:
            yield from device_batches


def _small(view_BxHxW: jax.Array) -> jax.Array:
    """Views averaged down to PIXEL_SIDE, flattened, 0..1."""
    shape = (view_BxHxW.shape[0], PIXEL_SIDE, PIXEL_SIDE)
    return jax.image.resize(view_BxHxW.astype(jnp.float32), shape, "linear").reshape(shape[0], -1) / 255.0
