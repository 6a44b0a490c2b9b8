"""The audit finds planted leaks, and what it prints holds no id and no text. All ids and texts are invented."""

import csv
import json

import cv2
import numpy as np
import pytest
from tiny import blotches

from medvlp_jax import audit
from medvlp_jax.data import images
from medvlp_jax.data.records import hashed_id

WORDS = (
    "A spiculated opacity of {} millimetres lies behind the {} left rib and has not been described before in any study."
)


class Source(list):
    """Records with the folder they lie in."""

    def __init__(self, records, folder, split):
        super().__init__(records)
        self.folder, self.split = folder, split


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Makes data sets: {name: {split: [(patient, image id, what else of the record)]}}."""

    def make(plan):
        made = {}
        for name, splits in plan.items():
            folder = tmp_path / name.replace("/", "_") / "default" / "1.0.0"
            folder.mkdir(parents=True)
            (folder / "counts.json").write_text("{}")
            lines, made[name] = [], {}
            for split, rows in splits.items():
                records = []
                for patient, image_id, *more in rows:
                    raw = (patient, f"study-{image_id}", image_id)
                    hashed = [hashed_id(value) for value in raw]
                    lines.append([*raw, hashed[2]])
                    seed = hashed_id(image_id) % 2**32
                    records.append(
                        {
                            "image": images.encode_png(blotches(seed)),
                            "findings": WORDS.format(image_id[-4:], patient),
                            "impression": "",
                            "report": "",
                            "public": False,
                            **dict(zip(("patient_id", "study_id", "image_id"), hashed, strict=True)),
                            **(more[0] if more else {}),
                        }
                    )
                made[name][split] = Source(records, folder, split)
            with open(folder / "ids.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["patient_id", "study_id", "image_id", "image_id_hash"])
                writer.writerows(lines)
        monkeypatch.setattr(audit, "sources_of", lambda data_dir, name: made[name])
        return tmp_path

    return make


CLEAN = {
    "train": [("patient-01", "image-0001"), ("patient-02", "image-0002")],
    "test": [("patient-03", "image-0003"), ("patient-04", "image-0004")],
}


def levels(result):
    return [finding["level"] for finding in result["findings"]]


def test_nothing_leaks(sets, capsys):
    sets({"ours": CLEAN})
    assert audit.main(["ours"]) == 0
    printed = capsys.readouterr().out
    assert "No leak found." in printed
    assert "Pairs of splits that share nothing: 1." in printed
    assert audit.audit(["ours"])["findings"] == []


@pytest.mark.parametrize("evaluation", ["test", "validation"])
def test_a_patient_in_training_and_evaluation(sets, capsys, tmp_path, evaluation):
    sets({"ours": {"train": CLEAN["train"], evaluation: [*CLEAN["test"], ("patient-02", "image-0009")]}})
    out = tmp_path / "out.json"
    assert audit.main(["ours", "--json", str(out)]) == 1
    printed = capsys.readouterr().out
    assert f"LEAK     1 patients of ours {evaluation} are in ours train (1 records)." in printed
    result = json.loads(out.read_text())
    assert result["findings"][0]["rows"] == [[2, 1]]
    for told in (printed, out.read_text()):
        assert "patient-02" not in told
        assert "spiculated" not in told


def test_a_patient_in_validation_and_test_is_a_warning(sets):
    sets({"ours": {"train": [], "validation": CLEAN["test"][:1], "test": CLEAN["test"]}})
    assert set(levels(audit.audit(["ours"]))) == {"warning"}


def test_sets_that_share_patients(sets):
    nih = {"train": [("61", "00000061_012.png"), ("62", "00000062_000.png")]}
    rsna = {"test": [("other name", "00000061_015.png")]}
    sets({"nih": nih, "rsna": rsna})
    result = audit.audit(["nih", "rsna"])
    (pair,) = result["pairs"]
    assert (pair["evaluation"], pair["other"]) == ("rsna test", "nih train")
    assert (pair["patients"], pair["images"]) == (1, 0)
    assert levels(result) == ["leak"]


def test_one_image_under_two_names(sets, tmp_path):
    uuid = "0004cfab-14fd-4e49-80ba-63a80b6bddd6"
    folder = sets({"nih": {"train": [("61", "00000061_012.png")]}, "rsna": {"test": [(uuid, uuid)]}})
    same_as = folder / "same.csv"
    same_as.write_text(f"image_id,same_as\n{uuid},00000061_012.png\n")
    assert audit.main(["nih", "rsna"]) == 0
    assert audit.main(["nih", "rsna", "--same_as", str(same_as)]) == 1


def test_equal_pixels_leak_and_look_alikes_warn(sets):
    grey = blotches(5)
    softer = np.clip(grey.astype(int) + 9, 0, 255).astype(np.uint8)
    train = [("patient-01", "image-0001", {"image": images.encode_png(grey)})]
    same = [("patient-03", "image-0003", {"image": cv2.imencode(".png", grey)[1].tobytes()})]
    alike = [("patient-03", "image-0003", {"image": images.encode_png(softer)})]
    sets({"a": {"train": train, "test": same}, "b": {"train": train, "test": alike}})
    assert levels(audit.audit(["a"])) == ["leak"]
    assert levels(audit.audit(["a"], images=False)) == []
    found = audit.audit(["b"])
    assert levels(found) == ["warning"]
    assert "look like" in found["findings"][0]["what"]
    assert levels(audit.audit(["b"], near=0)) in ([], ["warning"])


def test_long_equal_reports_warn(sets):
    text = {"findings": WORDS.format(1, 2)}
    sets({"ours": {"train": [("patient-01", "image-0001", text)], "test": [("patient-03", "image-0003", text)]}})
    result = audit.audit(["ours"])
    assert levels(result) == ["warning"]
    assert result["pairs"][0]["long_texts"] == 1


def test_ids_that_are_only_spelt_alike(sets):
    sets({"a": {"train": [("7", "image-0001")]}, "b": {"test": [("7", "image-0002")]}})
    result = audit.audit(["a", "b"])
    assert levels(result) == ["warning"]
    assert "spelt alike" in result["findings"][0]["what"]


@pytest.mark.parametrize(
    "planted", ["patient-03", "MRN 0048213", "Dr. Quartermain", "03/14/2011", WORDS.format("0003", "patient-03")]
)
def test_identifiers_in_outputs_and_side_tables(sets, capsys, planted):
    folder = sets({"ours": CLEAN})
    run = folder / "run"
    run.mkdir()
    (run / "log.txt").write_text(f"step 1\nsaw {planted}\n")
    assert audit.main(["ours", "--outputs", str(run)]) == 1
    printed = capsys.readouterr().out
    assert "log.txt:2" in printed
    assert planted not in printed
    (run / "log.txt").write_text("step 1\n")
    assert audit.main(["ours", "--outputs", str(run)]) == 0
    (folder / "ours" / "default" / "1.0.0" / "provenance.json").write_text(json.dumps({"note": planted}))
    assert audit.main(["ours"]) == 1
    assert "side tables" in capsys.readouterr().out


def test_rejected_rows_may_name_files(sets):
    folder = sets({"ours": CLEAN})
    (folder / "ours" / "default" / "1.0.0" / "rejected.csv").write_text(
        "row,reason,item\n1,missing_file,image-0003.png\n"
    )
    assert audit.main(["ours"]) == 0


def test_unreadable_records_and_images_are_counted(sets):
    class Broken(Source):
        def __getitem__(self, index):
            if index == 0:
                raise RuntimeError("bad bytes")
            return super().__getitem__(index)

    sets({"ours": {"train": [*CLEAN["train"], ("patient-09", "image-0009", {"image": b"no image"})]}})
    made = audit.sources_of("", "ours")
    made["train"] = Broken(made["train"], made["train"].folder, "train")
    result = audit.audit(["ours"])
    assert levels(result) == ["warning", "warning"]
    assert (
        result["splits"]["ours train"] | {"records": 2, "unreadable": 1, "undecodable": 1}
        == result["splits"]["ours train"]
    )


def test_errors(sets, capsys, tmp_path):
    sets({"ours": CLEAN})
    for arguments, message in (
        (["ours", "ours"], "named twice"),
        (["ours", "--near", "300"], "between 0 and 256"),
        (["ours", "--outputs", str(tmp_path / "nothing")], "No output"),
        (["ours", "--same_as", str(tmp_path / "nothing")], "No such file"),
    ):
        assert audit.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_data_set_that_is_not_prepared(tmp_path, capsys):
    assert audit.main(["cxr_phantom", "--data_dir", str(tmp_path)]) == 2
    assert "python -m medvlp_jax.prepare cxr_phantom" in capsys.readouterr().err
