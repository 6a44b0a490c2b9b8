"""SIIM-ACR on drawn files and, where it is at hand, on the real run lengths."""

import collections

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import labels, records
from medvlp_jax.data.tables import Table
from tfds_builders.siim_pneumothorax import make_dummy_data, siim_pneumothorax
from tfds_builders.siim_pneumothorax.make_dummy_data import name
from tfds_builders.testing import make, public_table


def decoded(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), -1) > 0


def test_every_image(tmp_path):
    make_dummy_data.write(tmp_path)
    made = make(siim_pneumothorax, root=str(tmp_path), size=64, fractions="1,0,0")
    assert (made.counts, made.reasons) == ({"train": 4}, {"bad_mask": 1, "missing_file": 1})
    assert made.why(name(4)) == "bad_mask"
    square = np.zeros((64, 64), bool)
    square[8:16, 16:24] = True  # rows 128..255, columns 256..383 of 1024
    np.testing.assert_array_equal(decoded(made.examples[name(1)]["masks"][0]["mask"]), square)
    square[32:36, 48:52] = True
    (both,) = made.examples[name(2)]["masks"]
    np.testing.assert_array_equal(decoded(both["mask"]), square)
    assert both["finding"] == "Pneumothorax"
    for number, state in ((0, 0), (1, 1), (3, 0)):
        assert labels.label_states(made.examples[name(number)]["labels"]) == {"Pneumothorax": state}
    assert made.examples[name(3)]["masks"] == []
    assert made.examples[name(0)]["view"] == "PA"


def test_prepared(tmp_path):
    make_dummy_data.write(tmp_path / "raw")
    command = ["siim_pneumothorax", "--root", str(tmp_path / "raw"), "--data_dir", str(tmp_path), "--size=32"]
    assert prepare.main([*command, "--workers=1", "--fractions=1,0,0"]) == 0
    source = records.RecordSource(tmp_path, "siim_pneumothorax", "train")
    assert sum(len(source[i]["masks"]["finding"]) for i in range(len(source))) == 2


def test_real_run_lengths():
    """Counts of the published table; every hundredth mask lies inside its image, and not where absolute starts end."""
    table = Table(public_table("siim-pneumothorax-train-rle.csv.gz"), ("ImageId", "EncodedPixels"))
    cells = [row["EncodedPixels"].strip() for _, row in table]
    assert (len(cells), cells.count("-1"), table.rejections) == (12_954, 9_378, [])
    found = siim_pneumothorax.read_masks(table)
    positive = [codes for _, codes in found.values() if codes]
    assert (len(found), len(positive)) == (12_047, 2_669)
    masks = collections.Counter(map(len, positive))
    assert [masks[n] for n in range(1, 6)] == [2_045, 447, 112, 40, 18]
    shares = [siim_pneumothorax.union(codes).mean() for codes in positive[::100]]
    assert 0 < min(shares) < max(shares) < 0.25
