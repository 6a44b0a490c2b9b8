"""COVID Rural on drawn files: masks of 0 and 1, empty and missing ones, patients by name."""

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images, labels
from tfds_builders.covid_rural import covid_rural
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.testing import make, write_files


def test_every_image(tmp_path):
    mask = np.zeros((96, 80), np.uint8)
    mask[20:40, 10:30] = 1
    stems = [f"COVID-19-AR-{patient}_CR_{n}" for patient, n in ((16406488, 1), (16406488, 2), (16406489, 1), (7, 1))]
    files = {f"jpgs/{stem}.jpg": images.encode_jpeg(ellipses(n)) for n, stem in enumerate(stems)}
    files[f"pngs_masks/{stems[0]}.png"] = images.encode_png(mask)
    files[f"pngs_masks/{stems[1]}.png"] = images.encode_png(np.zeros((96, 80), np.uint8))
    files[f"pngs_masks/{stems[2]}.png"] = b"\x89PNG\r\n\x1a\n" + bytes(200)
    write_files(tmp_path, files)
    made = make(covid_rural, root=str(tmp_path), size=0, fractions="1,0,0")
    assert (made.counts, made.reasons) == ({"train": 2}, {"bad_mask": 1, "missing_mask": 1})
    first, second = (made.examples[stem] for stem in stems[:2])
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(first["masks"][0]["mask"], np.uint8), -1) > 0, mask > 0)
    assert [labels.label_states(x["labels"]) for x in (first, second)] == [{"Lung Opacity": 1}, {"Lung Opacity": 0}]
    assert second["masks"] == []
    assert first["patient_id"] == second["patient_id"]
    with pytest.raises(ValueError, match="No image"):
        make(covid_rural, root=str(tmp_path / "jpgs"))
