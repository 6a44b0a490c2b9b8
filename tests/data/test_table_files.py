"""CSV files by column name, drawn splits, masks that follow their image."""

import gzip
import zipfile

import cv2
import numpy as np
import pytest

from medvlp_jax.data import data_sets, film_records, images, splits, tables
from medvlp_jax.data.records import SOURCE
from tfds_builders.testing import settings

CSV = 'ImageId, Encoded,note\na,1 2,"two\nlines, one cell"\nb,-1,\nc,1\nd,,,\n'


@pytest.mark.parametrize("kind", ["t.csv", "t.csv.gz", "t.csv.zip"])
def test_columns_by_name(tmp_path, kind):
    path = tmp_path / kind
    if kind.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("t.csv", CSV)
    else:
        path.write_bytes(gzip.compress(CSV.encode()) if kind.endswith(".gz") else CSV.encode())
    table = tables.Table(path, ["Encoded", "ImageId"], ["absent", "note"])
    for _ in range(2):
        rows = dict(table)
        assert rows[1] == {"Encoded": "1 2", "ImageId": "a", "note": "two\nlines, one cell"}
        assert sorted(rows) == [1, 2, 4]  # the last row only has blanks too many
        assert [(r.row, r.reason) for r in table.rejections] == [(3, "wrong_number_of_fields")]
    assert len(table.sha256) == 64


def test_missing_columns_are_explained(tmp_path):
    (tmp_path / "t.csv").write_text("Image Index,Finding Labels\na,b\n")
    with pytest.raises(
        ValueError, match=r"lacks the column 'Finding Label'\. Did you mean 'Finding Labels'\?"
    ) as error:
        tables.Table(tmp_path / "t.csv", ["Image Index", "Finding Label"])
    assert "Its columns: Image Index, Finding Labels." in str(error.value)


def test_files_are_found(tmp_path):
    for name in ("a/x-2.0.0-split.csv", "a/x-2.1.0-split.csv", "b/deep/1.PNG", "b/2.jpg", "c/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert tables.find_file(tmp_path, ["z", "a/x-*-split.csv"], "split table").name == "x-2.1.0-split.csv"
    with pytest.raises(ValueError, match=r"No label table under .*: looked for \*\.tsv, l\.csv\. Check --root"):
        tables.find_file(tmp_path, ["*.tsv", "l.csv"], "label table")
    assert tables.index_files(tmp_path, [".png", ".jpg"]) == {"1.PNG": "b/deep/1.PNG", "2.jpg": "b/2.jpg"}


def test_draws_do_not_depend_on_each_other():
    bounds = splits.thresholds("0.7,0.1,0.2")
    drawn = [splits.drawn_split(str(i), 3, bounds) for i in range(2000)]
    assert [abs(drawn.count(split) - n) < 70 for split, n in (("train", 1400), ("validation", 200), ("test", 400))]
    assert drawn[:10] == [splits.drawn_split(str(i), 3, bounds) for i in range(10)]


def test_run_lengths():
    # Down the columns: rows 1 and 2 of the first column, row 0 of the second.
    expected = np.array([[0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(film_records.rle_mask("1 2 0 1", 3, 2, relative=True), expected)
    np.testing.assert_array_equal(film_records.rle_mask("2 3", 3, 2), expected)
    for wrong in ("1 2 3", "5 9"):
        with pytest.raises(ValueError, match="run-length code"):
            film_records.rle_mask(wrong, 3, 2)


def test_boxes_and_masks_follow_the_image(tmp_path):
    """Cropped, shrunk and padded: the box and the mask of a bright square still lie on it."""
    image = np.zeros((100, 80), np.uint8)
    image[10:90, 10:70] = 60
    image[30:50, 40:60] = 250
    (tmp_path / "a.png").write_bytes(images.encode_png(image))
    item = {"row": 1, "image": "a.png", "path": str(tmp_path / "a.png"), "view": "PA", "split": "train"}
    item |= dict.fromkeys(("image_id", "study_id", "patient_id"), "x")
    item["pixel_boxes"] = [{"box": [30, 40, 50, 60], "finding": "Lung Lesion"}]
    config = settings(size=40, crop_border=True, film_check=False)
    small = (image[::2, ::2] > 200).astype(np.uint8)  # a mask drawn at half the size
    ((_, made),) = film_records.make_record(item, config, masks=[("Lung Lesion", small)], lungs=[None, image > 0])
    stored = cv2.imdecode(np.frombuffer(made["image"], np.uint8), -1)
    assert stored.shape == (40, 40)
    mask = cv2.imdecode(np.frombuffer(made["masks"][0]["mask"], np.uint8), -1)
    np.testing.assert_array_equal(mask > 0, stored > 155)
    top, left, bottom, right = np.rint(made["boxes"][0]["box"] * 40).astype(int)
    assert (mask[top:bottom, left:right] > 0).all()
    assert (mask > 0).sum() == (bottom - top) * (right - left) == 100
    lung = cv2.imdecode(np.frombuffer(made["lung_mask"], np.uint8), -1)
    assert set(np.unique(lung)) == {0, 2}
    assert made[SOURCE]["file"] == "a.png"


def test_prepare_commands():
    command = data_sets.prepare_command("cxr_phantom/tiny", "data")
    assert command == "python -m medvlp_jax.prepare cxr_phantom/tiny --data_dir data"
    command = data_sets.prepare_command("image_report_folder/ours", "d")
    assert command == "python -m medvlp_jax.prepare image_report_folder --manifest studies.csv --name ours --data_dir d"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_quoted_line_breaks(end, last):
    text = end.join(["a,b", f'1,"x{end}y"', "", '"2",""', "3,z"]) + (end if last else "")
    header, rows = tables.csv_rows(text)
    assert header == ["a", "b"]
    assert list(rows) == [["1", f"x{end}y"], ["2", ""], ["3", "z"]]
