"""Ask a trained run about images:  python -m medvlp_jax.predict --run runs/demo chest.png [--text "left effusion"]

Zero-shot scores of findings, cosines with texts, and heat maps, for DICOM, PNG and JPEG files. The same in Python:

    from medvlp_jax.predict import Predictor
    predictor = Predictor("runs/demo", ["Small left pleural effusion."])
    prediction = predictor("chest.png")
    print(prediction.doubts, prediction.findings[0], prediction.texts[0])
    prediction.save_maps("predictions")
"""

import argparse
import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import logging

from medvlp_jax import heat_picture, trained
from medvlp_jax.checkpoint import CheckpointError
from medvlp_jax.data import film_check, images
from medvlp_jax.data.labels import CHEXPERT_LABELS, position
from medvlp_jax.data.sentences import split_sentences
from medvlp_jax.data.view_geometry import view_to_image
from medvlp_jax.evaluators import prompts as prompt_pairs
from medvlp_jax.evaluators.pair_scores import pair_scores
from medvlp_jax.heatmap import similarity_map, unit
from medvlp_jax.methods.embeddings import default_section
from medvlp_jax.prediction import FindingScore, Prediction, TextScore

NOTE = "Scores order images by a finding; they are not calibrated probabilities and not for diagnosis."
PHANTOM_NOTE = "This run has seen drawn phantoms only: what it says about radiographs means nothing."
FIXES = {
    "missing_file": "Check the path.",
    "empty_file": "Copy the file again.",
    "truncated_image": "Copy the file again; this one ends early.",
    "unreadable_image": "Open it in a viewer and export it again.",
    "unknown_image_format": "Convert it to one of these.",
    "multi_frame": "Export the frame you want as a file of its own.",
    "blank_image": "There is nothing to see in it.",
}


class Predictor:
    """A trained run that is asked about images, one at a time.

    Args:
      run: run folder; step: its checkpoint, the newest by default; data_dir: where text towers are when they moved.
      texts: compared with every image.
      prompts: `plain`, `ensemble` or a JSON file, see `evaluators.prompts`.
      findings: which of those to score; default: all.
    Raises: FileNotFoundError, ValueError or CheckpointError with one line on what to change.
    """

    def __init__(
        self,
        run: str | Path,
        texts: Sequence[str] = (),
        *,
        prompts: str | Path = prompt_pairs.ENSEMBLE,
        findings: Sequence[str] = (),
        step: int | None = None,
        data_dir: str | Path | None = None,
    ):
        pairs = _chosen(prompt_pairs.load(prompts), findings, prompts)
        self.texts = list(dict.fromkeys(text.strip() for text in texts))
        if "" in self.texts:
            raise ValueError("A text is empty. Write what to look for, for example: --text 'Left pleural effusion.'")
        self.run = trained.open_run(run, step=step, data_dir=data_dir)
        named = [(f"a prompt of {finding}", text) for finding, pair in pairs.items() for side in pair for text in side]
        self._refuse_long([*named, *(("the text", text) for text in self.texts)])
        vectors = self.run.embed_texts(prompt_pairs.texts(pairs) + self.texts).aligned
        self._vectors = {section: np.asarray(vector_TxD) for section, vector_TxD in vectors.items()}
        self._pairs = pairs

    def __call__(self, image: str | os.PathLike[str]) -> Prediction:
        """Raises: images.ImageError for a file that is not a readable image."""
        data = images.read_bytes(image)
        grey_HxW = images.to_uint8(images.read_image(data))
        doubts = film_check.check_file(data, grey_HxW)
        view_SxSx1 = self.run.view(grey_HxW)
        embedding = self.run.embed_images(view_SxSx1[None])
        section = default_section(embedding.regions, embedding.aligned)
        vector_1xD = np.asarray(embedding.aligned[section])[:, 0]
        region_hxwxD = np.asarray(embedding.regions[section])[0, 0] if embedding.regions else None
        vector_TxD = self._vectors[section]
        findings, texts, finding_maps, text_maps = [], [], {}, {}
        for finding, (positive_PxD, negative_QxD) in prompt_pairs.split(self._pairs, vector_TxD).items():
            result = pair_scores(vector_1xD, positive_PxD, negative_QxD)
            findings.append(FindingScore(finding, *(float(value_N[0]) for value_N in result)))
            if region_hxwxD is not None:
                means_D = (unit(side).mean(axis=0) for side in (positive_PxD, negative_QxD))
                finding_maps[finding] = similarity_map(region_hxwxD, *means_D)
        for text, vector_D in zip(self.texts, vector_TxD[len(vector_TxD) - len(self.texts) :], strict=True):
            texts.append(TextScore(text, float(unit(vector_1xD)[0] @ unit(vector_D))))
            if region_hxwxD is not None:
                text_maps[text] = similarity_map(region_hxwxD, vector_D)
        return Prediction(
            image=os.fspath(image),
            section=section,
            doubts=doubts,
            findings=sorted(findings, key=lambda f: -f.score),
            texts=sorted(texts, key=lambda t: -t.cosine),
            finding_maps=finding_maps,
            text_maps=text_maps,
            picture=heat_picture.display(grey_HxW),
            image_shape=grey_HxW.shape,
            view_size=view_SxSx1.shape[0],
            view_to_image=view_to_image(trained.evaluation_ops(self.run.config), grey_HxW),
        )

    def _refuse_long(self, named: Iterable[tuple[str, str]]) -> None:
        limit, most = self.run.tower.max_length, self.run.config.text.get("max_sentences", 0)
        for name, text in named:
            count = len(split_sentences(text)) if most else 0
            if count > most:
                raise ValueError(
                    f"{name[0].upper()}{name[1:]} {textwrap.shorten(text, 40)!r} has {count} sentences; this run takes "
                    f"{most} (text.max_sentences). Shorten it, or give its sentences as texts of their own."
                )
            length = self.run.tower.tokenizer.length(text)
            if length > limit:
                raise ValueError(
                    f"{name[0].upper()}{name[1:]} {textwrap.shorten(text, 40)!r} has {length} tokens; this run takes "
                    f"{limit} (text.max_length). Shorten it, or give its sentences as texts of their own."
                )


def _chosen(pairs: dict[str, prompt_pairs.Pair], findings: Sequence[str], prompts: str | Path) -> dict:
    """The pairs of the named findings, all when none is named."""
    names = list(dict.fromkeys(CHEXPERT_LABELS[position(name)] for name in findings)) or list(pairs)
    missing = [name for name in names if name not in pairs]
    if missing:
        raise ValueError(f"{prompts} has no prompts for {missing[0]!r}. It has: {', '.join(pairs)}.")
    return {name: pairs[name] for name in names}


# ---- command line -----------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m medvlp_jax.predict", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="DICOM, PNG or JPEG file")
    parser.add_argument("--run", required=True, help="run folder (workdir of training)")
    parser.add_argument("--text", action="append", default=[], help="compared with every image; may be repeated")
    parser.add_argument("--prompts", default=prompt_pairs.ENSEMBLE, help="plain, ensemble (default) or a JSON file")
    parser.add_argument("--findings", default="", help="comma-separated names; default: all that have prompts")
    parser.add_argument("--top", type=int, default=3, help="heat maps of this many highest findings (default: 3)")
    parser.add_argument("--out", help="folder of the heat maps (default: RUN/predictions)")
    parser.add_argument("--step", type=int, help="checkpoint (default: the newest)")
    parser.add_argument("--data_dir", help="where text towers are, when they moved since training")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 when anything could not be done."""
    options = _parser().parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    out = Path(options.out or Path(options.run) / "predictions")
    try:
        findings = [name for name in options.findings.split(",") if name.strip()]
        arguments = {"prompts": options.prompts, "step": options.step, "data_dir": options.data_dir}
        predictor = Predictor(options.run, options.text, findings=findings, **arguments)
        _check_writable(out)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"error: {str(error).replace('--workdir', '--run')}", file=sys.stderr)  # what training calls it
        return 1
    config, step = predictor.run.config, predictor.run.step
    note = f"{NOTE} {PHANTOM_NOTE}" if config.data.name.startswith("cxr_phantom") else NOTE
    header = {"run": options.run, "step": step, "data": config.data.name, "prompts": options.prompts, "note": note}
    if not options.json:
        print(f"{options.run} at step {step}, trained on {config.data.name}; prompts: {options.prompts}")
    done: list[Prediction] = []
    records, failures, names = [], {}, set()
    for image in options.images:
        try:
            prediction = predictor(image)
            paths = prediction.save_maps(out, top=options.top, name=_unused(Path(image).stem, names))
        except images.ImageError as error:
            failures[image] = f"{error.reason} ({error.detail}). {FIXES.get(error.reason, '')}".rstrip()
        except OSError as error:
            failures[image] = f"its heat maps cannot be written: {error}. Choose another --out."
        except (ValueError, cv2.error) as error:
            failures[image] = f"the view of the model cannot be made: {' '.join(str(error).split())}"
        else:
            done.append(prediction)
            records.append({**prediction.as_dict(), "maps": [str(path) for path in paths]})
            for doubt in prediction.doubts:
                print(f"warning: {image}: {doubt.check}: {doubt.message}.", file=sys.stderr)
            if not options.json:
                print("\n".join(_table(prediction, paths)))
        if image in failures:
            print(f"failed: {image}: {failures[image]}", file=sys.stderr)
    rankings = _rankings(done, predictor.texts)
    if options.json:
        document = {**header, "images": records, "texts": rankings, "failures": failures}
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        for ranking in rankings if len(done) > 1 else []:
            print(f"\nimages nearest to {ranking['text']!r}")
            print("\n".join(f"  {entry['cosine']:+.3f}  {entry['image']}" for entry in ranking["images"]))
        if done:
            print(f"\n{note}")
    if failures:
        print(f"{len(failures)} of {len(options.images)} images could not be read or drawn.", file=sys.stderr)
    return int(bool(failures))


def _table(prediction: Prediction, paths: Sequence[Path]) -> list[str]:
    lines = ["", prediction.image, f"  {'finding':28s}{'score':>7s}{'cos+':>8s}{'cos-':>8s}"]
    lines += [f"  {f.finding:28s}{f.score:7.3f}{f.positive:+8.3f}{f.negative:+8.3f}" for f in prediction.findings]
    if prediction.texts:
        lines.append(f"  {'cosine':>8s}  text")
        lines += [f"  {text.cosine:+8.3f}  {text.text}" for text in prediction.texts]
    return lines + [f"  map: {path}" for path in paths]


def _rankings(done: Sequence[Prediction], texts: Sequence[str]) -> list[dict[str, Any]]:
    """For each text the images, nearest first."""
    rankings = []
    for text in texts:
        entries = [{"image": p.image, "cosine": dict(p.texts)[text]} for p in done]
        rankings.append({"text": text, "images": sorted(entries, key=lambda entry: -entry["cosine"])})
    return rankings


def _unused(name: str, names: set[str]) -> str:
    """The name, or with a number when an image of another folder has it too."""
    unused = next(n for n in [name, *(f"{name}-{i}" for i in range(2, len(names) + 3))] if n not in names)
    names.add(unused)
    return unused


def _check_writable(folder: Path) -> None:
    """Makes the folder. Raises: ValueError when it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        reason = "" if writable else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ValueError(f"Cannot write heat maps to {folder}: {reason}. Choose another folder with --out.")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
