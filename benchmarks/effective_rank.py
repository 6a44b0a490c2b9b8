"""How many dimensions the embeddings of a run use:  python -m benchmarks.effective_rank --run runs/m_flag

Effective rank: the exponential of the entropy of the singular values, divided by their sum (Roy and Vetterli, EUSIPCO
2007), of embeddings less their mean, over images of the validation split and their texts. Beside it the share of the
variance along the first direction, and the mean cosine of pairs and of all images with all texts.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax import text_tower, trained
from medvlp_jax.data import preprocess
from medvlp_jax.data.records import RecordSource
from medvlp_jax.data.sections import study_texts
from medvlp_jax.heatmap import unit

AT_A_TIME = 50


def effective_rank(x_NxD: np.ndarray) -> tuple[float, float]:
    """(effective rank, share of the variance along the first direction) of rows less their mean, in float64."""
    singular = np.linalg.svd(x_NxD - np.mean(x_NxD, axis=0, dtype=np.float64), compute_uv=False)
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-np.sum(share * np.log(share)))), float(singular[0] ** 2 / np.sum(singular**2))


def embeddings(run: trained.Trained, images: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What is looked at by name; images and texts of pairs, N x D, in the space that both meet in."""
    config = run.config
    source, section = RecordSource(config.data.dir, config.data.name, config.data.eval_split), config.text.sections[0]
    records = [source[i] for i in range(min(images, len(source)))]
    found = [study_texts(record, "mask", tuple(config.text.report))[section] for record in records]
    records, texts = zip(*((record, text) for record, text in zip(records, found, strict=True) if text), strict=True)
    views = np.stack([run.view(preprocess.decode_grey(record["image"])) for record in records])
    views = np.pad(views, [(0, -len(views) % AT_A_TIME), *[(0, 0)] * 3])
    seen = [jax.device_get(run.embed_images(views[i : i + AT_A_TIME])) for i in range(0, len(views), AT_A_TIME)]
    image_NxD = np.concatenate([some.aligned[section][:, 0] for some in seen])[: len(texts)]
    looked_at, vectors = {}, None
    if not config.text.trained:
        looked_at["text tower"] = text_tower.encode_all(text_tower.encode_function(run.tower), texts)
        vectors = dict(zip(texts, looked_at["text tower"], strict=True))
    text_NxD = np.asarray(run.embed_texts(texts, vectors).aligned[section])
    looked_at |= {"text, projected": text_NxD, "image, projected": image_NxD}
    looked_at["image, trunk"] = np.concatenate([some.pooled_BxVxC[:, 0] for some in seen])[: len(texts)]
    return looked_at, image_NxD, text_NxD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--step", type=int, help="checkpoint (default: the newest)")
    parser.add_argument("--images", type=int, default=200, help="images of the validation split (default: 200)")
    flags = parser.parse_args()
    run = trained.open_run(flags.run, step=flags.step)
    looked_at, image_NxD, text_NxD = embeddings(run, flags.images)
    print(f"{run.config.method} at step {run.step}, {len(image_NxD)} images with a text")
    for name, x_NxD in looked_at.items():
        rank, first = effective_rank(x_NxD)
        print(f"  {name:17} {x_NxD.shape[1]:4} wide   effective rank {rank:6.2f}   first direction {first:7.1%}")
    cosine_NxN = np.asarray(jnp.asarray(unit(image_NxD)) @ jnp.asarray(unit(text_NxD)).T)
    print(f"  cosine of pairs {np.diag(cosine_NxN).mean():.3f}, of all images with all texts {cosine_NxN.mean():.3f}")


if __name__ == "__main__":
    main()
