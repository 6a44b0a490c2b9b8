"""Boxes of a manifest: read, refused, and moved with the pixels of their image."""

import csv
import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images, staging
from tfds_builders.image_report_folder import image_report_folder as folder_set

BOX = [0.3, 0.2, 0.5, 0.6]  # ymin, xmin, ymax, xmax


def boxed_image(folder):
    """Writes a file 120 x 80 with a dark bar at the right and a white patch where BOX is."""
    image = np.full((120, 80), 60, np.uint8)
    image[:, 70:] = 0
    image[36:60, 16:48] = 255
    (folder / "a.png").write_bytes(images.encode_png(image))


def write_manifest(folder, *boxes, kind="jsonl"):
    """A manifest with one row per entry of `boxes`, all of the same image."""
    boxed_image(folder)
    rows = [{"image": "a.png", "image_id": i, "findings": "Clear.", "boxes": b} for i, b in enumerate(boxes)]
    path = folder / f"m.{kind}"
    with path.open("w", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "boxes": json.dumps(row["boxes"]) if row["boxes"] else ""} for row in rows)
    return str(path)


def plan_of(manifest, **settings):
    config = dataclasses.replace(folder_set.CONFIG, manifest=manifest, fractions="1,0,0", **settings)
    return folder_set.plan(config), config


def stored(manifest, **settings):
    """The pixels and boxes of every row, none of which may be refused."""
    plan, config = plan_of(manifest, **settings)
    assert not plan.rejections
    examples = [folder_set.make_examples(item, config)[0][1] for item in plan.splits["train"]]
    return [(images.read_image(example["image"]), example["boxes"]) for example in examples]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_boxes_are_read_from_lists_and_from_json_text(tmp_path, kind):
    boxes = [{"box": BOX, "finding": "effusion"}, {"box": [0, 0, 1, 1], "finding": "Pleural_Other"}]
    (_, some), (_, none) = stored(write_manifest(tmp_path, boxes, None, kind=kind), size=0)
    assert [(box["finding"], box["sentence"]) for box in some] == [("Pleural Effusion", -1), ("Pleural Other", -1)]
    np.testing.assert_allclose([box["box"] for box in some], [BOX, [0, 0, 1, 1]], atol=1e-6)
    assert none == []


@pytest.mark.parametrize("crop_border", [False, True])
@pytest.mark.parametrize(("fit", "size"), [("pad", 60), ("shorter", 60), ("squash", 60), ("pad", 0)])
def test_boxes_follow_the_pixels(tmp_path, fit, size, crop_border):
    manifest = write_manifest(tmp_path, [{"box": BOX, "finding": "Edema"}])
    ((pixels, boxes),) = stored(manifest, fit=fit, size=size, crop_border=crop_border)
    bright = pixels > 158
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    edges = np.array(boxes[0]["box"]) * (*pixels.shape, *pixels.shape)
    np.testing.assert_allclose(edges, [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=0.75)


def test_padded_box_in_numbers(tmp_path):
    ((_, boxes),) = stored(write_manifest(tmp_path, [{"box": BOX, "finding": "Edema"}]), size=60)
    # 120 x 80 becomes 60 x 40 with ten columns of black at either side.
    expected = [0.3, (10 + 0.2 * 40) / 60, 0.5, (10 + 0.6 * 40) / 60]
    np.testing.assert_allclose(boxes[0]["box"], expected, atol=1e-6)


def test_a_box_on_the_cut_border_does_not_return_in_the_padding(tmp_path):
    manifest = write_manifest(tmp_path, [{"box": [0, 0.9, 1, 1], "finding": "Edema"}])
    assert [boxes for _, boxes in stored(manifest, size=60, crop_border=True)] == [[]]


@pytest.mark.parametrize(
    ("boxes", "detail"),
    [
        ([{"box": [0.5, 0.2, 0.3, 0.6], "finding": "Edema"}], "ymin < ymax"),
        ([{"box": [0.1, 0.2, 0.3, 60], "finding": "Edema"}], "0..1"),
        ([{"box": [0.1, 0.2, 0.3, float("nan")], "finding": "Edema"}], "0..1"),
        ([{"box": [0.1, 0.2, 0.3], "finding": "Edema"}], "four numbers"),
        ([{"box": 3, "finding": "Edema"}], "four numbers"),
        ([{"box": BOX, "finding": "Cold"}], "no CheXpert name"),
        ([{"box": BOX}], "finding"),
        ({"box": BOX, "finding": "Edema"}, "not a list"),
        ("[0.1, 0.2", "delimiter"),
    ],
)
def test_bad_boxes_are_counted(tmp_path, boxes, detail):
    plan, _ = plan_of(write_manifest(tmp_path, None, boxes))
    assert staging.count_reasons(plan.rejections) == {"bad_box": 1}
    assert plan.rejections[0].row == 2
    assert detail in plan.rejections[0].detail
