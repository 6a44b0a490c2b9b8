"""Label files of other programs, and images found in tables whatever folders and extension they write."""

import pytest

from medvlp_jax.data import label_files
from medvlp_jax.data.tables import ImageIndex


def write(path, text):
    path.write_text(text)
    return path


def test_columns_by_name_in_any_order(tmp_path):
    path = write(tmp_path / "negbio.csv", "Airspace Opacity,study,edema,Reports\n-1.0,s5,1.0,a\n,6,0,b\n,6,1,c\n")
    file = label_files.read_label_file(path)
    assert file.states == {"5": {"Lung Opacity": -1, "Edema": 1}, "6": {"Edema": 0}}
    assert (file.key, file.unread, file.repeated, len(file.lacking)) == ("study", ["Reports"], 1, 12)
    items = [{"study_id": name, "image_id": name} for name in ("s5", "5", "7")]
    items.append({"study_id": "6", "image_id": "x", "labels": {"Edema": -1}, "keep_labels": True})
    facts = label_files.attach(items, file)
    assert [item["labels"].get("Edema") for item in items] == [1, 1, None, -1]
    assert (facts["images without a row"], facts.get("rows of nothing here")) == (1, None)
    (line,) = label_files.lines({"negbio.csv": facts})
    assert line.startswith(
        "Labels of negbio.csv: by study; rows 2; columns not read Reports; labels it lacks No Finding,"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,Edema\n1,1\n", "has no column of ids: one of study_id"),
        ("study_id,Reports\n1,1\n", "has no column for No Finding"),
        ("study_id,Lung Opacity,Airspace Opacity\n1,1,1\n", "both mean Lung Opacity"),
        ("study_id,Edema\n1,1\n2,3\n", "row 2: Label value '3' is not one of 1, 0, -1 or blank"),
    ],
)
def test_mistakes_are_explained(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        label_files.read_label_file(write(tmp_path / "x.csv", text))
    with pytest.raises(ValueError, match="does not exist"):
        label_files.read_label_file(tmp_path / "absent.csv")


def test_published_files_need_all_fourteen(tmp_path):
    with pytest.raises(ValueError, match="has no column for No Finding, Enlarged"):
        label_files.read_label_file(write(tmp_path / "x.csv", "study_id,Edema\n1,1\n"), complete=True)


@pytest.mark.parametrize(
    ("table", "image", "found"),
    [
        ("a.png", "a", True),
        ("a", "folder/a.png", True),
        ("folder/a.dcm", "a", True),
        ("CheXpert-v1.0-small/train/patient1/study1/view1.jpg", "train/patient1/study1/view1", True),
        ("CheXpert-v1.0-small/train/patient2/study1/view1.jpg", "train/patient1/study1/view1", False),
        ("train/patient1/study1/view1.jpg", "train/patient1/study1/view1.jpg", True),
        ("1.2.840.1", "1.2.840.1", True),
        ("a.png", "b", False),
    ],
)
def test_an_image_is_found_whatever_folders_are_written(table, image, found):
    assert ImageIndex([table]).find(image) == (table if found else None)
