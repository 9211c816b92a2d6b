"""The door to a workdir: what is damaged is named and mended, what is another run's is refused.

Over 400 lines: all of it damages copies of one trained run, which takes seconds to make.
"""

import json
import logging
import re
import shutil

import jax
import pytest
import small
from command import run as command
from etils import epath

import randmix
from randmix.analysis.verify import findings
from randmix.errors import UserError
from randmix.training import evaluation as eval_loop
from randmix.training import loop as train
from randmix.workdir import artifacts, json_files, manifest

pytestmark = pytest.mark.slow

SETTINGS = {"steps": 4, "eval_every": 2, "checkpoint_every": 2, "data__validation": 0.2}


def run(workdir, **overrides):
    config = small.config(**SETTINGS | overrides)
    return train.train(config, workdir, devices=jax.devices()[:1], programs=PROGRAMS)


PROGRAMS = train.Programs()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, run(workdir)


@pytest.fixture
def workdir(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run")


@pytest.fixture
def reference(whole):
    return whole[1]


def refused(workdir, *, best=False):
    with pytest.raises(UserError) as error:
        randmix.load(workdir, best=best)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(file, **values):
    """Sets values of a JSON file by dotted key (with double underscores)."""
    content = json.loads(file.read_text())
    for key, value in values.items():
        *groups, last = key.split("__")
        inner = content
        for group in groups:
            inner = inner[group]
        inner[last] = value
    file.write_text(json.dumps(content))


def verified(workdir):
    """What `verify` finds wrong."""
    return [problem for _, problem in findings(epath.Path(workdir)) if problem is not None]


def test_verify_from_the_command_line(workdir):
    assert randmix.load(workdir).step == 4
    best = randmix.load(workdir, best=True).step
    names = [
        "config.json",
        "data.json",
        "result.json",
        "metrics.jsonl",
        "checkpoints/2",
        "checkpoints/4",
    ]
    lines = [f"{workdir}/{name}: intact\n" for name in [*names, f"best/{best}"]]
    assert command("randmix verify", workdir) == (0, "".join(lines), "")
    (workdir / "checkpoints" / "2" / "default" / "_METADATA").write_text("x")
    done = command("randmix verify", workdir)
    assert done.status == 2
    assert done.out.startswith("".join(lines[:4]) + f"{workdir}/checkpoints/2: default/_METADATA ")
    assert done.err == (
        f"randmix: {workdir}: 1 of its files and checkpoints can't be used; damaged files, and "
        "damaged checkpoints after the last intact one, are set aside and made anew when you "
        f"remove {workdir}/result.json and train this workdir again\n"
    )
    assert command("randmix verify", "check", workdir).err == (
        f"randmix: expected WORKDIR_OR_DATA_SET, got check {workdir}; see --help\n"
    )


ANOTHER = {
    "activation": ({"model__activation": "relu"}, r"model.activation: 'gelu' -> 'relu'"),
    "normalization": (
        {"model__mean": [0.5], "model__std": [0.25]},
        r"model.mean: \[\] -> \[0.5\]; model.std: \[\] -> \[0.25\]",
    ),
    "mode": ({"mode": "full"}, r"mode: 'chans' -> 'full'"),
}


@pytest.mark.parametrize("what", ANOTHER)
@pytest.mark.parametrize("best", [False, True])
def test_a_config_that_was_edited_is_refused(workdir, what, best):
    changed, named = ANOTHER[what]
    edit(workdir / "config.json", **changed)
    step = max(int(p.name) for p in (workdir / ("best" if best else "checkpoints")).iterdir())
    folder = workdir / ("best" if best else "checkpoints") / str(step)
    message = refused(workdir, best=best)
    assert re.fullmatch(
        rf"{folder}/manifest.json: config differs from this run's \({named}\); "
        "put back this run's own config.json or checkpoints",
        message,
    ), message


def resum(folder, **about):
    """Writes a checkpoint's manifest anew, as a run with other values would have."""
    old = manifest.read(folder)
    (folder / manifest.FILE).unlink()
    manifest.write(folder, {**old, **about})


def test_checkpoints_of_another_seed_are_refused(workdir):
    for folder in (workdir / "checkpoints").iterdir():
        resum(folder, seed=1, config="01234567")
    said = (
        f"{workdir}/checkpoints/4/manifest.json: seed is 1, but 0 in this run; "
        "put back this run's own config.json or checkpoints"
    )
    assert refused(workdir) == said
    (workdir / "result.json").unlink()
    with pytest.raises(UserError) as error:
        run(workdir)
    assert str(error.value) == said


def test_a_renamed_step_is_refused(workdir):
    (workdir / "checkpoints" / "4").rename(workdir / "checkpoints" / "5")
    said = f"{workdir}/checkpoints/5/manifest.json: step is 4, but its folder is 5; rename it to 4"
    assert refused(workdir) == said
    assert verified(workdir) == [said]


def test_other_labels_are_refused(workdir):
    resum(workdir / "checkpoints" / "4", labels="01234567")
    assert re.fullmatch(
        rf"{workdir}: step 4 was trained with other labels \(hash 01234567\) than the config gives "
        r"now \([0-9a-f]{8}\); use the version of randmix that it was trained with",
        refused(workdir),
    )


def test_a_result_of_another_seed_is_refused(workdir):
    edit(workdir / "result.json", seed=7)
    said = (
        f"{workdir}/result.json: seed is 7, but 0 in config.json; "
        "one of the two is another run's: put back what was here"
    )
    assert refused(workdir) == said
    with pytest.raises(UserError) as error:
        run(workdir)
    assert str(error.value) == said


GARBAGE = {
    "empty": b"",
    "zeros": bytes(100),
    "binary": b"\xff\xfe\x00",
    "cut": b'{"seed": 0, "model',
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "null": b"null",
}


NOT_JSON = "it isn't JSON"


@pytest.mark.parametrize("name", GARBAGE)
def test_a_damaged_config_is_named_and_written_anew(workdir, name, reference, caplog):
    file = workdir / "config.json"
    whole = file.read_text()
    file.write_bytes(GARBAGE[name])
    reasons = {
        "a list": "it is a list, expected an object",
        "null": "it is null, expected an object",
    }
    damaged = f"{file}: damaged ({reasons.get(name, NOT_JSON)})"
    assert refused(workdir) == (
        f"{damaged}; start the run's training again with its own config, which writes it anew"
    )
    with pytest.raises(UserError) as error:
        run(workdir, seed=3)
    assert str(error.value).startswith(
        f"{damaged}, and the checkpoints are of a config with the fingerprint "
    )
    assert str(error.value).endswith(
        "; give the old config, which writes it anew, or another --workdir"
    )
    with caplog.at_level(logging.WARNING):
        assert run(workdir) == reference
    assert caplog.messages == [
        f"{damaged}; moved to {workdir}/set_aside/config.json and written anew"
    ]
    assert file.read_text() == whole


def test_a_lost_config_is_written_anew_by_the_run_of_the_checkpoints_alone(workdir, reference):
    whole = (workdir / "config.json").read_text()
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"/config.json is missing, and the checkpoints are of a"):
        run(workdir, seed=3)
    assert refused(workdir).startswith(f"{workdir}: no run there (config.json is missing)")
    assert run(workdir) == reference
    assert (workdir / "config.json").read_text() == whole


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model__name": "convmixr"}, "config.model.name: got 'convmixr', allowed"),
        (
            {"model__widht": 3},
            "config.model.widht: no such key with the model convmixer; did you mean 'width'?",
        ),
        ({"model": 3}, "damaged (model is an integer, expected an object)"),
        ({"seed": "0"}, "damaged (seed is a string, expected an integer)"),
        ({"batch_size": -1}, "config.batch_size: got -1, allowed"),
    ],
)
def test_a_config_with_values_that_are_not_allowed_is_named(workdir, changed, said):
    edit(workdir / "config.json", **changed)
    assert refused(workdir).startswith(f"{workdir}/config.json: {said}")


WRONG_RESULTS = {
    **GARBAGE,
    "no metrics": b'{"mode": "chans"}',
    "text for a number": b'{"mode": "chans", "metrics": {"test_loss": "low"}}',
    "a text for the config": json.dumps(
        {
            "mode": "chans",
            "metrics": {},
            "parameters": {"trainable": 1, "frozen": 1},
            "step": 4,
            "seed": 0,
            "wall_seconds": 1.0,
            "versions": {},
            "device": {"kind": "cpu", "platform": "cpu", "count": 1},
            "config": {"name": "digits", "changed": "nothing"},
        }
    ).encode(),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_a_damaged_result_is_named_and_computed_anew(workdir, name, reference, caplog):
    file = workdir / "result.json"
    file.write_bytes(WRONG_RESULTS[name])
    with caplog.at_level(logging.WARNING):
        assert randmix.load(workdir).step == 4
        damaged, end = caplog.messages[0].split("; ", 1)
        assert damaged.startswith(f"{file}: damaged (")
        assert end == "train this workdir again, which computes it anew from the last checkpoint"
        caplog.clear()
        assert run(workdir)["metrics"] == reference["metrics"]
    assert caplog.messages == [
        f"{damaged}; moved to {workdir}/set_aside/result.json and computed anew"
    ]
    assert artifacts.read_result(workdir)["metrics"] == reference["metrics"]


def test_a_damaged_log_keeps_its_whole_lines(workdir, caplog):
    file = workdir / "metrics.jsonl"
    whole = file.read_text().splitlines(keepends=True)
    (workdir / "result.json").unlink()
    file.write_bytes("".join([whole[0], "\x00" * 20 + "\n", *whole[2:]]).encode() + b"\xff{")
    with caplog.at_level(logging.WARNING):
        randmix.load(workdir)
        run(workdir)
    damaged = f"{file}: line 2 is damaged (it isn't JSON)"
    assert caplog.messages == [
        f"{damaged}; using the other lines",
        f"{damaged}; moved to {workdir}/set_aside/metrics.jsonl, the other lines are kept",
    ]
    assert file.read_text().splitlines(keepends=True) == [whole[0], *whole[2:]]


def test_a_worse_score_does_not_replace_the_best_after_the_log_was_lost(workdir, reference):
    [best] = (workdir / "best").iterdir()
    resum(best, score=2.0)  # no accuracy is better
    (workdir / "metrics.jsonl").write_bytes(b"\x00\n")
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert run(workdir)["metrics"] == reference["metrics"]
    assert [path.name for path in (workdir / "best").iterdir()] == [best.name]
    assert manifest.read(best)["score"] == 2.0


def test_a_damaged_best_checkpoint_is_set_aside_and_replaced(workdir, reference, caplog):
    [best] = (workdir / "best").iterdir()
    (best / "default" / "_METADATA").write_text("x")
    message = refused(workdir, best=True)
    assert message.startswith(
        f"{workdir}/best: no checkpoint is intact: {best}: default/_METADATA "
    )
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints")
    with caplog.at_level(logging.WARNING):
        assert run(workdir)["metrics"] == reference["metrics"]
    assert caplog.messages[-1].endswith(
        f"; moved to {workdir}/set_aside/{best.name}, the next better one replaces it"
    )
    assert randmix.load(workdir, best=True).step == int(best.name)


def test_following_the_advice_for_lost_checkpoints_makes_them_anew(workdir, reference):
    for folder in ("checkpoints", "best"):
        shutil.rmtree(workdir / folder)
    assert refused(workdir) == (
        f"{workdir}/checkpoints: no checkpoint there; remove {workdir}/result.json and train this "
        "workdir again"
    )
    assert run(workdir) == reference  # finished, and it stays so
    (workdir / "result.json").unlink()
    assert refused(workdir) == f"{workdir}/checkpoints: no checkpoint there; train this workdir"
    assert run(workdir)["metrics"] == reference["metrics"]
    assert verified(workdir) == []


def test_following_the_advice_for_damaged_checkpoints_makes_them_anew(workdir, reference):
    for folder in ("checkpoints", "best"):
        for path in (workdir / folder).glob("*/default/_METADATA"):
            path.write_text("x")
    lines = verified(workdir)
    assert len(lines) == 3
    assert all("default/_METADATA has 1 bytes" in line for line in lines)
    assert refused(workdir).endswith(f"; remove {workdir}/result.json and train this workdir again")
    (workdir / "result.json").unlink()
    assert run(workdir)["metrics"] == reference["metrics"]
    assert verified(workdir) == []


@pytest.mark.parametrize("content", [b"", b'{"name": "digits"}'])
def test_a_damaged_description_of_the_data_is_named_and_written_anew(workdir, content, caplog):
    file = workdir / "data.json"
    whole = file.read_text()
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        eval_loop.open_split(randmix.load(workdir), "test")
    damaged, _, what_to_do = str(error.value).partition("; ")
    assert damaged.startswith(f"{file}: damaged (")
    assert what_to_do == (
        "start the run's training again with its own config, which writes it anew"
    )
    assert verified(workdir) == [str(error.value)]
    with caplog.at_level(logging.WARNING):
        run(workdir)
    assert caplog.messages == [
        f"{damaged}; moved to {workdir}/set_aside/data.json and written anew"
    ]
    assert file.read_text() == whole


def test_a_run_does_not_go_on_with_other_data(workdir):
    edit(workdir / "data.json", classes=["zero", "one"], num_classes=2)
    (workdir / "result.json").unlink()
    with pytest.raises(UserError) as error:
        run(workdir)
    assert str(error.value) == (
        f"{workdir}/data.json: the run was trained on a data set with another num_classes and "
        "classes; give its own data set, or another --workdir"
    )


def test_a_run_of_an_older_version_does_not_go_on(workdir):
    file = workdir / "config.json"
    values = json.loads(file.read_text())
    del values["data"]["in_memory"], values["data"]["interpolation"]
    file.write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        run(workdir)
    assert str(error.value) == (
        f"{workdir}: holds a run of an older version, whose config lacks data.in_memory, "
        "data.interpolation; give another --workdir"
    )


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"about": {}, "files": {"a": 3}}'])
def test_a_manifest_that_is_none_is_damage(workdir, content):
    (workdir / "checkpoints" / "4" / "manifest.json").write_bytes(content)
    assert verified(workdir) == [f"{workdir}/checkpoints/4: manifest.json is damaged"]


def test_a_manifest_with_a_sum_of_its_own_but_of_another_structure_is_damage(workdir):
    file = workdir / "checkpoints" / "4" / "manifest.json"
    file.write_text(manifest._text({}, {"default/_METADATA": {"bytes": [1]}}))
    assert manifest.damage(file.parent) == "manifest.json is damaged"


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_named(workdir, name):
    (workdir / name).unlink()
    (workdir / name).mkdir()
    assert verified(workdir)[0].startswith(f"{workdir}/{name}: ")


def test_json_is_checked_by_structure():
    assert json_files.parse('{"a": {"b": 1, "c": 2.5}}', {"a": {str: float}}) == {
        "a": {"b": 1, "c": 2.5}
    }
    assert json_files.parse('{"b": 1}', {"a?": int, "b": range(2)}) == {"b": 1}
    for text, structure, said in (
        ("{}", {"a": int}, "a is missing"),
        ('{"a": true}', {"a": int}, "a is a boolean, expected an integer"),
        ('{"a": 1.5}', {"a": int}, "a is a number, expected an integer"),
        ('{"a": {"b": []}}', {"a": {str: {"c": int}}}, "a.b is a list, expected an object"),
        ('{"a": 4}', {"a": range(1, 4)}, "a is 4, expected 1 to 3"),
        ('{"a": 4}', {"a?": str}, "a is an integer, expected a string"),
        ("3", dict, "it is an integer, expected an object"),
        ("{", dict, "it isn't JSON"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            json_files.parse(text, structure)
