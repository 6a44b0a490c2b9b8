"""Arguments and fields of the configs, the config on disk, and golden dumps."""

import importlib
import json
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common
from medvlp_jax import config as configs

HERE = Path(__file__).resolve().parent
RENEW = runpy.run_path(str(HERE / "golden" / "renew.py"))
CONFIGS = sorted(
    path.stem for path in (HERE.parent / "configs").glob("*.py") if path.stem not in ("common", "__init__")
)
COMPOSED = ("hierarchical_local",)  # no method that anybody released
ARGUMENTS = ["", "preset=released", "demo", "demo,preset=released", "small", "data=image_report_folder,small"]


def get(name, argument=""):
    return importlib.import_module(f"configs.{name}").get_config(argument)


# ---- arguments --------------------------------------------------------------------------


def parse(arg):
    return common.parse_arg(arg, demo=False, views=2, rate=0.5, preset="fixed").to_dict()


@pytest.mark.parametrize(
    ("arg", "changed"),
    [
        (None, {}),
        ("", {}),
        (",", {}),
        ("demo", {"demo": True}),
        ("demo=true", {"demo": True}),
        ("demo=True", {"demo": True}),
        ("demo=1", {"demo": True}),
        ("demo=false", {"demo": False}),
        ("demo,demo=0", {"demo": False}),
        ("preset=released,demo", {"preset": "released", "demo": True}),
        ("views=3,rate=2", {"views": 3, "rate": 2.0}),
        ("preset=a=b", {"preset": "a=b"}),
    ],
)
def test_arguments(arg, changed):
    parsed = parse(arg)
    assert parsed == {"demo": False, "views": 2, "rate": 0.5, "preset": "fixed"} | changed
    assert {name: type(value) for name, value in parsed.items()} == {
        "demo": bool,
        "views": int,
        "rate": float,
        "preset": str,
    }


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("dmeo", r"Unknown config argument 'dmeo'. Did you mean 'demo'\? Known: demo \(default False\), views"),
        ("xyzzy=1", r"Unknown config argument 'xyzzy'. Known: .*preset \(default 'fixed'\)"),
        ("demo=maybe", "Config argument demo='maybe' must be true or false"),
        ("views=two", "Config argument views='two' must be int"),
        ("views=2.5", "Config argument views='2.5' must be int"),
        ("rate=fast", "Config argument rate='fast' must be float"),
        ("preset", "Config argument 'preset' needs a value: preset='fixed'"),
    ],
)
def test_arguments_that_are_wrong(arg, words):
    with pytest.raises(ValueError, match=words):
        parse(arg)


def test_choose():
    assert common.choose("preset", "fixed", ("fixed", "released")) == "fixed"
    with pytest.raises(ValueError, match=r"Unknown preset 'fxied'. Choose one of fixed, released"):
        common.choose("preset", "fxied", ("fixed", "released"))


# ---- every config -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n in CONFIGS for a in ARGUMENTS if not (n in COMPOSED and "released" in a)]
)
def test_every_config_has_the_shared_fields_and_is_locked(name, argument):
    config = get(name, argument)
    fields = configs.flat(config)
    assert [field for field in common.SHARED_FIELDS if field not in fields] == []
    assert fields["method"] == ("composed" if name in COMPOSED else name)
    for node in (config, config.data, config.model, config.optimizer):
        assert node.is_locked
        with pytest.raises(AttributeError):
            node.no_such_field = 1
    json.dumps(fields)
    with pytest.raises(TypeError):  # fields keep their types
        config.batch_size = "many"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_refuses_unknown_arguments(name):
    for argument in ("dmeo", "preset=fxied"):
        with pytest.raises(ValueError, match="Unknown"):
            get(name, argument)


def test_configs_do_not_share_state():
    first = get("imitate")
    first.optimizer.learning_rate = 123.0
    assert get("imitate").optimizer.learning_rate != 123.0


# ---- on disk ----------------------------------------------------------------------------


def small(**fields):
    config = ConfigDict({"seed": 0, "betas": (0.9, 0.999), "total_steps": 10, "data": {"dir": "a", "name": "x"}})
    config.update_from_flattened_dict(fields)
    return config.lock()


def start(workdir):
    (workdir / "checkpoints" / "5").mkdir(parents=True)


def stored(workdir):
    return json.loads((workdir / "config.json").read_text())


def test_flat():
    config = ConfigDict({"b": {"c": {"d": (1, 2)}, "e": None}, "a": 1.5})
    assert configs.flat(config) == {"a": 1.5, "b.c.d": [1, 2], "b.e": None}
    assert configs.flat(config.to_dict()) == configs.flat(config)


def test_fields_that_differ():
    one, two, three = {"a": 1, "seed": 0}, {"a": 1, "seed": 1, "new": [1]}, {"a": 1, "seed": 1}
    missing = "(no such field)"
    assert configs.differing(one, two, three) == {"new": [missing, [1], missing], "seed": [0, 1, 1]}
    assert configs.differing(two, two) == {}
    assert configs.differences(one, two, ("there", "now")) == [
        "new: there '(no such field)', now [1]",
        "seed: there 0, now 1",
    ]
    assert configs.differences(one, two, ("", ""), lambda field: field == "a") == []
    assert configs.differences({"total_steps": 1}, {}, ("", "")) == []  # does not make another run


def test_claim_writes_the_config_once(tmp_path):
    configs.claim_workdir(small(), tmp_path, write=False)
    assert list(tmp_path.iterdir()) == []
    configs.claim_workdir(small(), tmp_path)
    assert stored(tmp_path) == {"seed": 0, "betas": [0.9, 0.999], "total_steps": 10, "data.dir": "a", "data.name": "x"}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_run_without_a_checkpoint_may_change_its_config(tmp_path):
    configs.claim_workdir(small(), tmp_path)
    (tmp_path / "checkpoints" / "5.tmp").mkdir(parents=True)  # an unfinished one
    configs.claim_workdir(small(seed=1), tmp_path)
    assert stored(tmp_path)["seed"] == 1


def test_started_run_takes_the_same_config_and_free_fields(tmp_path):
    configs.claim_workdir(small(), tmp_path)
    start(tmp_path)
    configs.claim_workdir(small(), tmp_path)
    configs.claim_workdir(small(total_steps=20, **{"data.dir": "b"}), tmp_path)
    assert stored(tmp_path)["total_steps"] == 20
    assert stored(tmp_path)["data.dir"] == "b"


@pytest.mark.parametrize("write", [True, False])
def test_started_run_refuses_another_config_and_lists_both_values(tmp_path, write):
    configs.claim_workdir(small(), tmp_path)
    start(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    other = small(seed=1, betas=(0.8, 0.999), total_steps=20, **{"data.name": "y"})
    with other.unlocked():
        other.extra = "new"
        del other.data["dir"]  # a free field may also go
    with pytest.raises(ValueError, match="belongs to another config") as info:
        configs.claim_workdir(other, tmp_path, write=write)
    listed = [line.strip() for line in str(info.value).splitlines()[1:-1]]
    assert listed == [
        "betas: the run has [0.9, 0.999], you ask for [0.8, 0.999]",
        "data.name: the run has 'x', you ask for 'y'",
        "extra: the run has '(no such field)', you ask for 'new'",
        "seed: the run has 0, you ask for 1",
    ]
    assert str(tmp_path) in str(info.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_free_fields_are_fields():
    fields = configs.flat(get("imitate"))
    unknown = [name for name in configs.FREE_FIELDS if not any(field.startswith(name) for field in fields)]
    assert unknown == []


def test_the_demo_averages_over_what_the_phantoms_show():
    from tfds_builders.cxr_phantom.findings import RENDERED_LABELS

    assert set(get("imitate", "demo").evaluation.findings) == set(RENDERED_LABELS)


def test_load_restores_values_and_tuples(tmp_path):
    config = get("imitate", "demo")
    with config.unlocked():
        config.seed = 17
        config.optimizer.betas = (0.5, 0.6)
    configs.claim_workdir(config, tmp_path)
    loaded = configs.load(tmp_path)
    assert loaded == config
    assert loaded.optimizer.betas == (0.5, 0.6)
    assert isinstance(loaded.optimizer.betas, tuple)
    assert configs.flat(loaded) == configs.flat(config)
    assert loaded.is_locked


def test_load_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: config\.json is missing"):
        configs.load(tmp_path)


def test_load_of_a_damaged_config(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match="is damaged"):
        configs.load(tmp_path)


# ---- golden dumps -----------------------------------------------------------------------


@pytest.mark.parametrize("file", RENEW["DUMPS"])
def test_golden(file):
    path, (name, argument) = HERE / "golden" / f"{file}.json", RENEW["DUMPS"][file]
    golden, now = json.loads(path.read_text(encoding="utf-8")), json.loads(RENEW["dump"](name, argument))
    changed = configs.differences(golden, now, ("was", "is"), lambda field: True)
    if changed:
        pytest.fail(
            f"configs/{name}.py:{argument} differs from {path.name}:\n  " + "\n  ".join(changed) + "\n"
            "When this is what you want, renew the dumps: python tests/golden/renew.py"
        )
