"""TBX11K on drawn files: classes by folder, boxes and the mask they make."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images, labels
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.tbx11k import tbx11k
from tfds_builders.testing import make, write_files

CATEGORIES = [{"id": 1, "name": "ActiveTuberculosis"}, {"id": 2, "name": "ObsoletePulmonaryTuberculosis"}]
PARTS = {
    "train": ["health/h0001.png", "sick/s0001.png", "tb/tb0003.png", "tb/tb0004.png", "extra/x.png"],
    "val": ["tb/tb0005.png"],
}
MISSING = "tb/tb0004.png"


def content(names):
    pictures = [{"id": i, "file_name": name, "height": 512, "width": 512} for i, name in enumerate(names)]
    places = [picture["id"] for picture in pictures if picture["file_name"] in ("tb/tb0003.png", "tb/tb0005.png")]
    boxes = [{"image_id": i, "category_id": c, "bbox": [128 * c, 64, 64, 128]} for i in places for c in (1, 2)]
    return json.dumps({"images": pictures, "annotations": boxes, "categories": CATEGORIES})


def test_every_image(tmp_path):
    drawn = [name for names in PARTS.values() for name in names if name != MISSING]
    files = {f"imgs/{name}": images.encode_png(ellipses(len(name), 64, 64)) for name in drawn}
    lists = {f"annotations/json/TBX11K_{part}.json": content(names) for part, names in PARTS.items()}
    write_files(tmp_path, files | lists)
    made = make(tbx11k, root=str(tmp_path), size=0, validation_share=0.0)
    assert (made.counts, made.reasons) == ({"train": 3, "test": 1}, {"bad_path": 1, "missing_file": 1})
    record = made.examples["tb/tb0003"]
    assert [box["finding"] for box in record["boxes"]] == [category["name"] for category in CATEGORIES]
    np.testing.assert_allclose(record["boxes"][0]["box"], [0.125, 0.25, 0.375, 0.375])
    mask = cv2.imdecode(np.frombuffer(record["masks"][0]["mask"], np.uint8), -1) > 0
    expected = np.zeros((64, 64), bool)
    expected[8:24, 16:24] = expected[8:24, 32:40] = True
    np.testing.assert_array_equal(mask, expected)
    assert made.own("sick/s0001") == {"healthy": 0, "sick, not tuberculosis": 1, "tuberculosis": 0}
    assert labels.label_states(made.examples["health/h0001"]["labels"]) == {"No Finding": 1}
    assert "tb/tb0005" in made.splits["test"]
    (tmp_path / "annotations/json/TBX11K_val.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="lacks annotations, categories; it has images"):
        make(tbx11k, root=str(tmp_path))
