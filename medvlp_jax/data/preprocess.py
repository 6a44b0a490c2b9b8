"""Preprocessing as a string of operations: `decode|views(2, size=224, hflip=0.5)|sections('mask')|tokenize(256)`.

Each operation is a function registered under its name. Its arguments are Python literals; it returns the step that
changes one example. The result of a whole string is a function `(record, rng) -> example`, where the example holds the
batch fields of one record, without the batch axis.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data import images, transforms
from medvlp_jax.data.records import text_hash
from medvlp_jax.data.sections import study_texts
from medvlp_jax.data.sentences import rejoined, split_sentences
from medvlp_jax.data.tokenizer import Tokenizer, choose_units, encode_units

if TYPE_CHECKING:  # it imports JAX, which the processes that prepare data do without
    from medvlp_jax.data.text_cache import TextCache

Example = dict[str, Any]
Step = Callable[[Example, np.random.Generator], Example]
Preprocess = Callable[[Mapping[str, Any], np.random.Generator], Example]

SECTIONS = ("findings", "impression")
UNITS = (*SECTIONS, "report")  # texts that images may be aligned with

BATCH_FIELDS = (
    "image",
    *(f"{unit}_{part}" for unit in UNITS for part in ("ids", "mask", "segment", "embedding", "hash")),
    *(f"has_{unit}" for unit in UNITS),
    *("labels", "has_boxes", "patient_hash", "study_hash", "index"),
)
"""Fields that reach the batch when no `keep` operation says otherwise, each as far as the record has it."""


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of a parsed string: its registered name and literal arguments."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        given = [repr(value) for value in self.args] + [f"{key}={value!r}" for key, value in self.kwargs]
        return f"{self.name}({', '.join(given)})" if given else self.name


_OPS: dict[str, Callable[..., Step]] = {}
_RESOURCES = ("tokenizer", "text_cache")  # keyword-only parameters filled by `build`, not by the string


def register(name: str) -> Callable[[Callable[..., Step]], Callable[..., Step]]:
    """Decorator: makes `factory(*literals, **literals) -> step` available in strings under `name`.

    Keyword-only parameters called `tokenizer` or `text_cache` receive what `build` was given.
    """

    def add(factory: Callable[..., Step]) -> Callable[..., Step]:
        if name in _OPS:
            raise ValueError(f"The operation {name!r} is registered twice.")
        _OPS[name] = factory
        return factory

    return add


def known_ops() -> list[str]:
    """Names that may be used in a string, sorted."""
    return sorted(_OPS)


# ---- strings -> operations -> function ------------------------------------------------------------------------------


def parse(string: str) -> list[Op]:
    """Splits a string into operations and checks names and arguments.

    Raises ValueError for a string that is not pipe-joined operations, an unknown operation or argument (listing the
    known ones and the closest), and an argument that is not a literal.
    """
    try:
        node = ast.parse(string.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(
            f"Cannot read the operations {string!r}: {error.msg} (character {error.offset}). "
            "Write them like \"decode|views(2, size=224)|sections('mask')\"."
        ) from None
    nodes = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        nodes.append(node.right)
        node = node.left
    return [_parse_op(node, string) for node in [node, *reversed(nodes)]]


def _parse_op(node: ast.expr, string: str) -> Op:
    written = ast.get_source_segment(string.strip(), node)
    call = node if isinstance(node, ast.Call) else None
    name = call.func if call else node
    if not isinstance(name, ast.Name):
        raise ValueError(f"{written!r} in {string!r} is not an operation. Known: {', '.join(known_ops())}.")
    if name.id not in _OPS:
        raise ValueError(f"Unknown operation {name.id!r}.{_closest(name.id, known_ops())}")
    args, kwargs = [], {}
    try:
        for value in call.args if call else ():
            args.append(ast.literal_eval(value))
        for keyword in call.keywords if call else ():
            if keyword.arg is None:
                raise ValueError
            kwargs[keyword.arg] = ast.literal_eval(keyword.value)
    except ValueError:
        raise ValueError(f"The arguments of {written!r} must be literals: numbers, quoted text, tuples.") from None
    op = Op(name.id, tuple(args), tuple(kwargs.items()))
    _check_arguments(op)
    return op


def _check_arguments(op: Op) -> None:
    signature = inspect.signature(_OPS[op.name])
    known = [name for name in signature.parameters if name not in _RESOURCES]
    for name, _ in op.kwargs:
        if name not in known:
            raise ValueError(f"{op.name} has no argument {name!r}.{_closest(name, known)}")
    try:
        signature.bind(
            *op.args, **dict(op.kwargs), **{name: None for name in _RESOURCES if name in signature.parameters}
        )
    except TypeError as error:
        raise ValueError(f"{op}: {error}. Arguments: {', '.join(known) or 'none'}.") from None


def _closest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."


def build(string: str, *, tokenizer: Tokenizer | None = None, text_cache: TextCache | None = None) -> Preprocess:
    """The function `(record, rng) -> example` that a string of operations stands for.

    A record is what `records.RecordSource` yields, with `index` added by the pipeline. The example holds arrays only:
      image uint8 [V, H, W, 1]; <section>_ids int32 [L], <section>_mask bool [L] and, with
      units, <section>_segment int32 [L]; or <section>_embedding float32 [E]; for findings, impression and, where
      `sections` makes one, report;
      has_<section> bool; <section>_hash int32; labels int8 [14]; has_boxes bool;
      patient_hash, study_hash int32; index int64,
    or exactly what `keep(...)` names.

    Raises ValueError as `parse`, and when an argument is out of range or an operation needs a tokenizer or text cache
    that was not given. The function raises ValueError for a record it cannot process; messages never hold content.
    """
    ops = parse(string)
    resources = {"tokenizer": tokenizer, "text_cache": text_cache}
    steps: list[Step] = []
    for op in ops:
        factory = _OPS[op.name]
        wanted = {name: resources[name] for name in _RESOURCES if name in inspect.signature(factory).parameters}
        try:
            steps.append(factory(*op.args, **dict(op.kwargs), **wanted))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{op}: {error}") from error
    if all(op.name != "keep" for op in ops):
        steps.append(keep())

    def preprocess(record: Mapping[str, Any], rng: np.random.Generator) -> Example:
        example = dict(record)
        for step in steps:
            example = step(example, rng)
        return example

    return preprocess


# ---- images -----------------------------------------------------------


def decode_grey(data: bytes) -> NDArray[np.uint8]:
    """PNG or JPEG bytes -> grey uint8 [H, W]; 16-bit values are spread from their own range over 0..255.

    Raises ValueError for bytes that are not a whole image; the message tells their number, never their content.
    """
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
        flags |= cv2.IMREAD_ANYDEPTH
    # Some decoders fill in what is missing of a cut JPEG; its end marker tells.
    whole = data[:2] != b"\xff\xd8" or data.rfind(b"\xff\xd9") > 0
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data and whole else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"the image ({len(data)} bytes) is damaged or neither PNG nor JPEG")
    return image if image.dtype == np.uint8 else images.to_uint8(image)


def _is_kept(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == 2 and not image.flags.writeable


def _pixels(example: Example, op: str) -> NDArray[np.uint8]:
    image = example.get("image")
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        raise ValueError(f"{op} needs one decoded image: put it after decode and before views or center")
    return image


def _on_pixels(op: str, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Step:
    return lambda example, rng: {**example, "image": change(_pixels(example, op))}


@register("decode")
def decode() -> Step:
    """Encoded bytes -> grey uint8 [H, W]; see `decode_grey`. Images of `kept.KeptSource` are so already."""

    def step(example: Example, rng: np.random.Generator) -> Example:
        if _is_kept(example.get("image")):
            return example
        if not isinstance(example.get("image"), bytes):
            raise ValueError("decode needs encoded image bytes: use it once, first")
        example["image"] = decode_grey(example["image"])
        return example

    return step


@register("crop_border")
def crop_border(threshold: float = 0.02, margin: int = 0) -> Step:
    """Cuts dark edges; see `images.crop_border`."""
    return _on_pixels("crop_border", lambda image: images.crop_border(image, threshold=threshold, margin=margin))


@register("resize")
def resize(size: int, fit: str = "pad") -> Step:
    """Resizes to a square (`pad`, `squash`) or the `shorter` side to `size`; see `images.resize_keep_aspect`."""
    images.resize_keep_aspect(np.zeros((1, 1), np.uint8), size, fit)  # raises for bad arguments now, not in a thread
    return _on_pixels("resize", lambda image: images.resize_keep_aspect(image, size, fit))


@register("pad_to_square")
def pad_to_square(value: int = 0) -> Step:
    """Adds bars of grey level `value` on both sides of the shorter axis."""
    if not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"value={value!r} must be a grey level, 0 to 255.")

    def pad(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        rest = ((top, side - height - top), (left, side - width - left))
        return np.pad(image, rest, constant_values=value)

    return _on_pixels("pad_to_square", pad)


@register("views")
def views(count: int = 2, **options: Any) -> Step:
    """`count` random views: image uint8 [count, size, size, 1]. The options are the fields of `transforms.ViewSpec`."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count={count!r} must be a positive whole number of views.")
    spec = transforms.ViewSpec(**options)

    def step(example: Example, rng: np.random.Generator) -> Example:
        image = _pixels(example, "views")
        out_VxHxW = np.empty((count, spec.size, spec.size), np.uint8)
        for view in out_VxHxW:
            transforms.random_view(image, spec, rng, out=view)
        example["image"] = out_VxHxW[..., None]
        return example

    return step


# `views` takes the fields of ViewSpec as keywords: say so, for the check of arguments.
_COUNT = inspect.Parameter("count", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=2)
_FIELDS = [(field.name, inspect.Parameter.KEYWORD_ONLY) for field in dataclasses.fields(transforms.ViewSpec)]
views.__signature__ = inspect.Signature([_COUNT, *(inspect.Parameter(*field, default=None) for field in _FIELDS)])


@register("center")
def center(size: int = 224, crop_from: int | None = None, fit: str = "pad") -> Step:
    """The evaluation view: image uint8 [1, size, size, 1]. See `transforms.center_view`."""
    transforms.ViewSpec(size=size, crop_from=crop_from, fit=fit)
    return _on_pixels("center", lambda x: transforms.center_view(x, size, crop_from, fit)[None, ..., None])


# ---- text -----------------------------------------------------------


@register("sections")
def sections(policy: str, report: Sequence[str] = ()) -> Step:
    """What a missing section becomes, and what the unit `report` is made of; see `data.sections.study_texts`."""
    # Raises for an unknown policy or part now, not in a thread.
    study_texts({"findings": "", "impression": "", "report": ""}, policy, report)

    def step(example: Example, rng: np.random.Generator) -> Example:
        example.update(study_texts(example, policy, report))
        return example

    return step


@register("sentence")
def sentence(*units: str, rule: str = "simple") -> Step:
    """Each unit becomes one of its sentences, drawn anew at every access; one without a sentence counts as missing.

    The rules are those of `data.sentences.split_sentences`.
    """
    units = _units(units)
    split_sentences("", rule)

    def step(example: Example, rng: np.random.Generator) -> Example:
        for unit in units:
            found = split_sentences(example[unit], rule)
            example[unit] = found[rng.integers(len(found))] if found else ""
            example[f"has_{unit}"] = bool(found) and bool(example[f"has_{unit}"])
        return example

    return step


@register("swap_sentences")
def swap_sentences(*units: str, p: float = 0.4, rule: str = "simple") -> Step:
    """Sentences of each unit change places, two at a time: each swap takes two places, at random and perhaps the same.

    The number of swaps is geometric with success probability `p`, counted from 0. The sentences end up one to a
    paragraph, so that they are split the same way again; the hash stays that of the text as it was.
    Source: philip-mueller/lovt@f548985, the augmentation of reports.
    """
    units = _units(units)
    split_sentences("", rule)
    if not 0 < p <= 1:
        raise ValueError(f"p={p!r} must be a probability above 0.")

    def step(example: Example, rng: np.random.Generator) -> Example:
        for unit in units:
            example[f"{unit}_hash"] = np.int32(text_hash(example[unit]))
            found = split_sentences(example[unit], rule)
            swaps = int(rng.geometric(p)) - 1
            for a, b in rng.integers(len(found), size=(swaps, 2)) if found else ():
                found[a], found[b] = found[b], found[a]
            example[unit] = "\n\n".join(found)
        return example

    return step


@register("sentences")
def sentences(*units: str, rule: str) -> Step:
    """Each unit becomes its sentences by a rule that cleans them, joined by blanks (`data.sentences.rejoined`); one of
    which nothing is left counts as missing."""
    units = _units(units)
    split_sentences("", rule)

    def step(example: Example, rng: np.random.Generator) -> Example:
        for unit in units:
            example[unit] = rejoined(example[unit], rule)
            example[f"has_{unit}"] = bool(example[unit]) and bool(example[f"has_{unit}"])
        return example

    return step


@register("tokenize")
def tokenize(
    max_len: int = 256,
    *sections: str,
    units: str = "",
    max_sentences: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Step:
    """Texts -> ids int32 [max_len] and mask bool [max_len], special tokens included; findings and impression unless
    sections are named. With units (`words`, `sentences`) segment int32 [max_len] too: the unit of every piece, see
    `data.tokenizer.encode_units`."""
    sections = _units(sections)
    choose_units(units)
    if tokenizer is None:
        raise ValueError("no tokenizer was given; pass build(..., tokenizer=tokenizer.load(text_weights)).")
    if not isinstance(max_len, int) or max_len < 3:
        raise ValueError(f"max_len={max_len!r} must be a whole number of at least 3.")

    def step(example: Example, rng: np.random.Generator) -> Example:
        texts = [example[section] for section in sections]
        fields = encode_units(tokenizer, texts, max_len, units, max_sentences=max_sentences)
        for name, value_SxL in fields.items():
            for section, value_L in zip(sections, value_SxL, strict=True):
                example[f"{section}_{name}"] = value_L
        return example

    return step


@register("cached_text")
def cached_text(*units: str, text_cache: TextCache | None = None) -> Step:
    """Texts -> their stored vectors, float32 [E]; findings and impression unless units are named."""
    units = _units(units)
    if text_cache is None:
        raise ValueError("no text cache was given; pass build(..., text_cache=TextCache.open(folder)).")

    def step(example: Example, rng: np.random.Generator) -> Example:
        for unit in units:
            example[f"{unit}_embedding"] = text_cache.lookup(example[unit])
        return example

    return step


def _units(names: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in UNITS]
    if unknown:
        raise ValueError(f"unknown text {unknown[0]!r}. Choose of {', '.join(UNITS)}.")
    return tuple(names) or SECTIONS


# ---- what reaches the batch -----------------------------------------------------------


@register("keep")
def keep(*names: str) -> Step:
    """Exactly these fields in the batch; without names, every one of `BATCH_FIELDS` that the record has."""
    if any(not isinstance(name, str) for name in names):
        raise ValueError("names must be quoted, as in keep('image', 'labels').")

    def step(example: Example, rng: np.random.Generator) -> Example:
        image = example.get("image")
        if isinstance(image, np.ndarray) and image.ndim == 2:
            example["image"] = image[None, ..., None]
        for unit in UNITS:
            # Every record has a report as it was written; it is a unit once `sections` has made it one.
            if isinstance(example.get(unit), str) and f"has_{unit}" in example:
                example.setdefault(f"{unit}_hash", np.int32(text_hash(example[unit])))
        for name in ("patient", "study"):
            if f"{name}_id" in example:
                example[f"{name}_hash"] = np.int32(int(example[f"{name}_id"]) & 0x7FFFFFFF)
        if isinstance(example.get("boxes"), Mapping):
            example["has_boxes"] = len(example["boxes"]["box"]) > 0
        if not names:
            return {name: np.asarray(example[name]) for name in BATCH_FIELDS if _is_array(example.get(name))}
        missing = [name for name in names if name not in example]
        if missing:
            raise ValueError(f"keep({missing[0]!r}): no such field here.{_closest(missing[0], sorted(example))}")
        return {name: example[name] for name in names}

    return step


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | bool | int | float)
