"""One image file and what is known of it -> one record: read, cropped, resized, encoded, boxes and masks along with it.

Every builder of images on disk makes its records here. A work item is a dict, JSON-able:

    row, image (path as shown), path, image_id, study_id, patient_id, split, view: always there
    findings, impression, report, sentences: text. labels: {CheXpert name: state}. own_labels: {name: state}
    boxes: [{"box": [ymin, xmin, ymax, xmax], "finding": str, "sentence": int}], in 0..1 of the image file;
    pixel_boxes: the same in pixels of the image file
    age, sex: as `demographics.person` gives them; what is missing is looked for in a DICOM header
    sha256: what the file must have, where it is published
    view_from_header: True to take the view of a DICOM file from its header. facts: slugs counted over all records
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data import burned_in, demographics, film_check, images, preprocess, record_text, records
from medvlp_jax.data.labels import label_vector
from medvlp_jax.data.staging import Example, Rejection
from medvlp_jax.data.view_geometry import box_in_view, view_to_image

CHOICES: dict[str, tuple[Any, ...]] = {
    "fit": images.FITS,
    "depth": (8, 16),
    "encoding": ("auto", "png", "jpeg"),
    **record_text.CHOICES,
}
"""Settings with a fixed set of values."""

VIEW_NAMES: dict[str, str] = {
    **dict.fromkeys(("PA", "POSTERO-ANTERIOR", "POSTEROANTERIOR"), "PA"),
    **dict.fromkeys(("AP", "ANTERO-POSTERIOR", "ANTEROPOSTERIOR", "AP SUPINE", "AP ERECT", "AP PORTABLE"), "AP"),
    **dict.fromkeys(("AP_HORIZONTAL", "AP AXIAL"), "AP"),
    **dict.fromkeys(("LATERAL", "LAT", "L", "LL", "RL", "LLAT", "LEFT LATERAL", "RIGHT LATERAL"), "LATERAL"),
    **dict.fromkeys(("FRONTAL",), "FRONTAL"),
}
"""Spellings of a projection (upper case) -> the view of a record; others are unknown, ""."""
FRONTAL = ("PA", "AP", "FRONTAL")

Mask = tuple[str, np.ndarray]
"""A finding and where it is: bool or uint8 [H, W], of the size of the image file or of its shape at another size."""


def check_settings(config: Any) -> None:
    """Raises ValueError for a setting of the image part that has no such value."""
    for setting, choices in CHOICES.items():
        if getattr(config, setting) not in choices:
            raise ValueError(f"{setting}={getattr(config, setting)!r}; choices: {', '.join(map(str, choices))}.")
    if config.depth == 16 and config.encoding == "jpeg":
        raise ValueError("encoding='jpeg' holds 8 bits; use encoding='png' with depth=16.")
    if config.size < 0:
        raise ValueError(f"size={config.size} must be pixels, or 0 for the original size.")


def make_record(
    item: dict[str, Any],
    config: Any,
    *,
    masks: Sequence[Mask] | Callable[[np.ndarray], Sequence[Mask]] = (),
    lungs: Sequence[np.ndarray | None] = (),
) -> list[Example]:
    """The record of one work item (see above). Raises: Rejection with the reason of an `ImageError`.

    Args: config: has the fields of `tfds_builders.common.LocalConfig`. masks: of findings, or a function of the image
      that was read. lungs: left and right lung (the patient's sides), as masks.
    """
    try:
        data = images.read_bytes(item["path"])
        digest = hashlib.sha256(data).hexdigest()
        if item.get("sha256", digest) != digest:
            raise Rejection("wrong_checksum", row=item["row"], item=item["image"])
        frame = None if config.frame < 0 else config.frame
        # Boxes, masks, borders and letters are places in the whole picture.
        placed = (
            config.crop_border
            or config.blank_burned_in
            or masks
            or lungs
            or item.get("boxes")
            or item.get("pixel_boxes")
        )
        if config.size and not placed:
            image, whole = images.read_for_resize(data, config.size, config.fit, frame=frame)
        else:
            image, whole = images.read_image(data, frame=frame), None
        return _record(item, config, data, digest, image, whole, masks, lungs)
    except images.ImageError as error:
        raise Rejection(error.reason, row=item["row"], item=item["image"], detail=error.detail) from None


def _record(
    item: dict[str, Any],
    config: Any,
    data: bytes,
    digest: str,
    image: np.ndarray,
    whole: tuple[int, int] | None,
    masks: Sequence[Mask] | Callable[[np.ndarray], Sequence[Mask]],
    lungs: Sequence[np.ndarray | None],
) -> list[Example]:
    kind = images.sniff(data)
    view = _header_view(item, data, kind, config) if item.get("view_from_header") else item["view"]
    masks = [(name, _fitted(mask, image.shape)) for name, mask in (masks(image) if callable(masks) else masks)]
    lungs = [None if lung is None else _fitted(lung, image.shape) for lung in lungs]
    boxes = [*item.get("boxes", ()), *(_of_pixels(box, image.shape) for box in item.get("pixel_boxes", ()))]
    facts = list(item.get("facts", ()))
    if config.blank_burned_in:
        image, blanked = burned_in.blank(image)
        facts += ["burnt-in letters blanked"] if blanked else []
        facts += burned_in.header_facts(data) if kind == "dicom" else []
    if config.crop_border:
        window = images.border_window(image)
        boxes = _moved(boxes, preprocess.Op("crop_border"), image, image[window].shape)
        image, masks = image[window], [(name, mask[window]) for name, mask in masks]
        lungs = [None if lung is None else lung[window] for lung in lungs]
    doubts = []
    if config.film_check and view != "LATERAL":
        step = -(-max(image.shape) // 512)  # every pixel would take a tenth of the time of a record
        doubts = [doubt.check for doubt in film_check.check_grey(images.to_uint8(image[::step, ::step]))]
    if config.size:
        resized = images.resize_keep_aspect(image, config.size, config.fit, whole=whole)
        boxes = _moved(boxes, preprocess.Op("resize", (config.size, config.fit)), image, resized.shape)
        image = resized
    image = images.to_uint8(image) if config.depth == 8 else image
    jpeg = config.encoding == "jpeg" or (config.encoding == "auto" and config.depth == 8 and kind == "jpeg")
    stored_masks = [(name, _stored(mask, config)) for name, mask in masks]
    text = record_text.text_fields(item, config)
    example = records.example(
        image=images.encode_jpeg(image) if jpeg else images.encode_png(image),
        findings=text["findings"],
        impression=text["impression"],
        report=text["report"],
        sentences=text["sentences"],
        labels=label_vector(text["labels"]),
        own_labels=item.get("own_labels", {}),
        boxes=[{"sentence": -1, **box} for box in boxes],
        masks=[{"mask": images.encode_png(mask), "finding": name} for name, mask in stored_masks if mask.any()],
        lung_mask=_lung_mask(lungs, config),
        view=view,
        **demographics.of_item(item, data, kind, config.age_and_sex),
        patient_id=item["patient_id"],
        study_id=item["study_id"],
        image_id=item["image_id"],
        public=config.public,
        source={
            "file": item["image"],
            "sha256": digest,
            "doubts": "|".join(doubts),
            "facts": [*facts, *text["facts"], *(f"picture looks {doubt}" for doubt in doubts)],
        },
    )
    return [(item["image_id"], example)]


def _header_view(item: dict[str, Any], data: bytes, kind: str, config: Any) -> str:
    tags = film_check.read_tags(data) if kind == "dicom" else {}
    view = VIEW_NAMES.get(tags.get("ViewPosition", ""), "")
    if config.only_frontal and view not in FRONTAL:
        raise Rejection("not_frontal" if view else "view_unknown", row=item["row"], item=item["image"])
    return view


def _of_pixels(box: dict[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
    edges = np.asarray(box["box"], np.float64) / (*shape, *shape)
    return {**box, "box": np.clip(edges, 0, 1).tolist()}


def _moved(
    boxes: list[dict[str, Any]], op: preprocess.Op, before: np.ndarray, shape: tuple[int, int]
) -> list[dict[str, Any]]:
    """Boxes of the image `before` in the frame of the image that `op` makes of it, cut to it; those outside dropped.

    One operation at a time: what a crop cuts off must not come back in the bars that padding adds.
    """
    if not boxes:
        return []
    matrix = view_to_image([op], before)
    placed = [(box, box_in_view(box["box"], matrix, before.shape, shape)) for box in boxes]
    return [{**box, "box": place} for box, place in placed if place is not None]


def _fitted(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask drawn on another size of the same picture -> 0/255 in the size of the image."""
    import cv2

    mask = (np.asarray(mask) > 0).astype(np.uint8) * 255
    if mask.shape != tuple(shape):
        mask = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return mask


def _stored(mask: np.ndarray, config: Any) -> np.ndarray:
    if not config.size:
        return mask
    return (images.resize_keep_aspect(mask, config.size, config.fit) > 127).astype(np.uint8) * 255


def _lung_mask(lungs: Sequence[np.ndarray | None], config: Any) -> bytes:
    """PNG with 1 in the left and 2 in the right lung, or b"" without masks."""
    drawn = [(value, _stored(lung, config)) for value, lung in enumerate(lungs, start=1) if lung is not None]
    if not drawn:
        return b""
    plane = np.zeros(drawn[0][1].shape, np.uint8)
    for value, lung in drawn:
        plane[lung > 0] = value
    return images.encode_png(plane)


def rle_mask(code: str, height: int, width: int, *, relative: bool = False) -> np.ndarray:
    """Run-length code "start length start length ..." down the columns -> uint8 0/1 [height, width].

    Args: relative: every start counts from the end of the run before it (SIIM-ACR stage 1), from 0; otherwise starts
      are positions from 1 (the common Kaggle form).
    Raises: ValueError for a code that is no list of pairs, or leaves the image.
    """
    numbers = np.array([int(word) for word in code.split()], np.int64)
    if len(numbers) % 2 or (numbers < 0).any():
        raise ValueError("the run-length code is no list of pairs")
    starts, lengths = numbers[::2], numbers[1::2]
    if relative:
        starts = np.cumsum(starts) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    else:
        starts = starts - 1
    flat = np.zeros(height * width, np.uint8)
    if len(starts) and (starts + lengths > flat.size).any():
        raise ValueError("the run-length code leaves the image")
    for start, length in zip(starts, lengths, strict=True):
        flat[start : start + length] = 1
    return flat.reshape(width, height).T
