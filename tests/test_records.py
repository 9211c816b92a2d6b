"""Records: what they keep, and that killed writers, damage and merging lose no other run."""

import gzip
import json
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from randmix import config as configs
from randmix.errors import UserError
from randmix.experiments import measured, records
from randmix.training import loop
from randmix.workdir import artifacts

LOG = (
    {"step": 20, "epoch": 0.5, "train_loss": 2.0},
    {"step": 40, "epoch": 1.0, "train_loss": 1.5, "learning_rate": 0.0},
    {"step": 40, "test_loss": 1.25, "test_accuracy": 0.5},
)


def folder_of(root, *, seed=0, **changes):
    """Writes the files of a finished run and returns its folder."""
    config = configs.recipe("digits:tiny")
    config.update_from_flattened_dict({"seed": seed, "data.data_dir": "/here", **changes})
    folder = root / configs.fingerprint(config)
    (folder / measured.FOLDER).mkdir(parents=True)
    (folder / artifacts.CONFIG).write_text(configs.to_json(config))
    result = {
        **{"mode": "chans", "step": 40, "seed": seed, "wall_seconds": 1.5, "versions": {}},
        "device": {"kind": "cpu", "platform": "cpu", "count": 1},
        "metrics": {"test_accuracy": 0.5},
        "parameters": {"trainable": 10, "frozen": 20},
    }
    (folder / artifacts.RESULT).write_text(json.dumps(result))
    (folder / artifacts.METRICS).write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return folder


def lines(folder):
    return (folder / records.FILE).read_bytes().splitlines()


def test_a_record_holds_all_of_a_run(tmp_path):
    folder = folder_of(tmp_path / "runs")
    rng = np.random.default_rng(0)
    bits = {"fgsm": rng.random((3, 50)) < 0.5, "stage/block": rng.normal(size=(5, 5, 2))}
    file = measured.path(folder, "attacks-1")
    measured.kept(file, lambda: {"rows": [1, 2]})
    measured.write_arrays(measured.arrays_path(file), bits)
    (folder / measured.FOLDER / measured.FAILED).write_text('{"coverage": "no memory"}')
    records.append(tmp_path / "kept", records.of_folder(folder))
    shutil.rmtree(folder)
    (found,) = records.read(tmp_path / "kept").values()
    assert found.name == folder.name
    assert found.log == [*LOG]
    assert found.steps_per_epoch == 40
    assert found.result["metrics"] == {"test_accuracy": 0.5}
    assert found.measurements == {"attacks-1": {"rows": [1, 2]}}
    assert found.arrays("attacks-1").keys() == bits.keys()
    for name, array in bits.items():
        np.testing.assert_array_equal(found.arrays("attacks-1")[name], array)
    assert found.arrays("attacks-2") == {}
    # What is true of one machine alone stays there.
    assert found.config["data"]["data_dir"] is None


def test_a_run_is_recorded_once_and_merging_is_concatenation(tmp_path):
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    folders = [folder_of(tmp_path / "runs", seed=seed) for seed in range(3)]
    for seed, place in ((0, one), (1, one), (1, one), (1, two), (2, two)):
        records.append(place, records.of_folder(folders[seed]))
    assert [len(lines(place)) for place in (one, two)] == [2, 2]
    both.mkdir()
    (both / records.FILE).write_bytes(
        (one / records.FILE).read_bytes() + (two / records.FILE).read_bytes()
    )
    assert {*records.read(both)} == {folder.name for folder in folders}
    assert records.read(both) == records.read(two, one)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_records_of_a_run_the_one_that_says_more_counts(tmp_path, order):
    folder = folder_of(tmp_path / "runs")
    records.append(tmp_path / "0", records.of_folder(folder))
    measured.kept(measured.path(folder, "bank-1"), lambda: 3)
    records.append(tmp_path / "1", records.of_folder(folder))
    (found,) = records.read(*(tmp_path / str(place) for place in order)).values()
    assert found.measurements == {"bank-1": 3}


def test_keys_that_came_later_have_their_defaults(tmp_path):
    folder = folder_of(tmp_path / "runs")
    values = json.loads((folder / artifacts.CONFIG).read_text())
    for group, key in ((values, "label_smoothing"), (values["data"], "eval_crop")):
        del group[key]
    (folder / artifacts.CONFIG).write_text(json.dumps(values))
    record = records.of_folder(folder)
    assert record.name == folder.name
    records.append(tmp_path, record)
    assert [*records.read(tmp_path)] == [folder.name]


def test_what_data_and_machine_decided_is_not_part_of_the_name(tmp_path):
    folder = folder_of(tmp_path / "runs")
    values = json.loads((folder / artifacts.CONFIG).read_text())
    values["data"]["in_memory"], values["model"]["mean"] = "on", [0.3]
    (folder / artifacts.CONFIG).write_text(json.dumps(values))
    assert records.of_folder(folder).name == folder.name
    # Unless the run asked for it.
    result = json.loads((folder / artifacts.RESULT).read_text())
    result["config"] = {"name": "tiny", "changed": {"model.mean": [0.3]}}
    (folder / artifacts.RESULT).write_text(json.dumps(result))
    assert records.of_folder(folder).name != folder.name


@pytest.mark.slow
def test_a_trained_run_is_named_as_it_was_asked_for(tmp_path):
    config = configs.recipe("digits:tiny")
    config.model.mean, config.model.std, config.data.interpolation = (0.3,), (0.2,), "antialias"
    loop.train(config, tmp_path, devices=jax.devices()[:1])
    assert records.of_folder(tmp_path).name == configs.fingerprint(config)


def test_damaged_lines_cost_only_themselves(tmp_path, caplog):
    for seed in range(3):
        records.append(tmp_path, records.of_folder(folder_of(tmp_path / "runs", seed=seed)))
    file = tmp_path / records.FILE
    first, second, third = lines(tmp_path)
    unknown = second.replace(b'"mode": "chans"', b'"made": "chans"', 1)
    file.write_bytes(b"\n".join([first[:100], unknown, third]))
    assert len(records.read(file)) == 1
    assert "can't use line 1 (it isn't JSON) and 1 more; using the other lines" in caplog.text


@pytest.mark.parametrize("together", [0, -3, 1.5])
def test_a_result_of_no_number_of_seeds_is_damage(tmp_path, caplog, together):
    folder = folder_of(tmp_path / "runs")
    records.append(tmp_path, records.of_folder(folder))
    line = json.loads(lines(tmp_path)[0])
    line["result"]["ensemble"] = together
    (tmp_path / records.FILE).write_text(json.dumps(line) + "\n")
    assert records.read(tmp_path) == {}
    assert "can't use line 1 (result.ensemble is " in caplog.text
    (folder / artifacts.RESULT).write_text(json.dumps(line["result"]))
    with pytest.raises(UserError, match=r"result\.json: damaged \(ensemble is "):
        records.of_folder(folder)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (5, "arrays is an integer, expected a string"),
        ("../of_another.npz", "arrays is '../of_another.npz', expected the name of a file"),
    ],
)
def test_arrays_in_a_file_without_a_name_are_damage(tmp_path, caplog, arrays, reason):
    records.append(tmp_path, records.of_folder(folder_of(tmp_path / "runs")))
    line = json.loads(lines(tmp_path)[0])
    (tmp_path / records.FILE).write_text(json.dumps({**line, "arrays": arrays}) + "\n")
    assert records.read(tmp_path) == {}
    assert f"line 1 ({reason})" in caplog.text


def test_a_full_disk_is_said_and_leaves_no_part_of_a_line(tmp_path):
    """A limit on the size of files acts as a full disk does: the first write takes a part."""
    folders = [folder_of(tmp_path / "runs", seed=seed) for seed in range(2)]
    records.append(tmp_path, records.of_folder(folders[0]))
    before = (tmp_path / records.FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 500, limits[1]))
    try:
        with pytest.raises(UserError, match="can't be written \\(No space left on device\\); make"):
            records.append(tmp_path, records.of_folder(folders[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / records.FILE).read_bytes() == before


def test_a_folder_of_arrays_that_cannot_be_written_is_one_line(tmp_path):
    folder = folder_of(tmp_path / "runs")
    file = measured.path(folder, "bank-1")
    measured.kept(file, lambda: 3)
    measured.write_arrays(measured.arrays_path(file), {"x": np.zeros(3)})
    (tmp_path / records.ARRAYS).write_text("")
    with pytest.raises(UserError, match=r"records\.jsonl: can't be written"):
        records.append(tmp_path, records.of_folder(folder))


def test_a_writer_that_was_killed_in_a_line_harms_no_other(tmp_path):
    folders = [folder_of(tmp_path / "runs", seed=seed) for seed in range(2)]
    records.append(tmp_path, records.of_folder(folders[0]))
    with (tmp_path / records.FILE).open("ab") as file:
        file.write(lines(tmp_path)[0][:200])
    records.append(tmp_path, records.of_folder(folders[1]))
    assert {*records.read(tmp_path)} == {folder.name for folder in folders}


@pytest.mark.slow
def test_several_processes_append_at_once(tmp_path):
    """Four processes with long lines; a torn or lost one would be missed."""
    folders = [folder_of(tmp_path / "runs", seed=seed) for seed in range(8)]
    for folder in folders:
        (folder / artifacts.METRICS).write_text(
            "".join(json.dumps({**LOG[0], "step": step}) + "\n" for step in range(1, 3000))
        )
    code = (
        "import sys; from randmix.experiments import records\n"
        "for _ in range(3):\n"
        "    for folder in sys.argv[2:]: records.append(sys.argv[1], records.of_folder(folder))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path, *folders[i:], *folders[:i]])
        for i in range(0, 8, 2)
    ]
    assert [process.wait() for process in started] == [0] * 4
    assert len(lines(tmp_path)) == 8
    assert {*records.read(tmp_path)} == {folder.name for folder in folders}


def test_runs_are_found_in_folders_sweeps_and_files(tmp_path):
    sweep = tmp_path / "sweep"
    folders = [folder_of(sweep / records.RUNS, seed=seed) for seed in range(3)]
    records.append(sweep, records.of_folder(folders[0]))
    (folders[2] / artifacts.RESULT).unlink()
    alone = folder_of(tmp_path / "others", seed=5)
    found, unfinished = records.gather([sweep, alone, sweep / records.FILE])
    assert [record.name for record in found] == [
        *sorted(folder.name for folder in folders[:2]),
        alone.name,
    ]
    assert unfinished == [str(folders[2])]
    shutil.rmtree(sweep / records.RUNS)
    found, unfinished = records.gather([sweep])
    assert ([record.name for record in found], unfinished) == ([folders[0].name], [])
    assert [record.name for record in records.gather([tmp_path / "others"])[0]] == [alone.name]


def test_a_record_does_not_say_where_filters_lay(tmp_path):
    filters = f"from=/here/filters.npz@{'0' * 16}"
    folder = folder_of(tmp_path, **{"model.filters": filters})
    result = json.loads((folder / artifacts.RESULT).read_text())
    result["config"] = {"name": "digits", "changed": {"model.filters": filters, "epochs": 2.0}}
    (folder / artifacts.RESULT).write_text(json.dumps(result))
    record = records.of_folder(folder)
    assert record.settings["model.filters"] == f"from=@{'0' * 16}"
    asked = record.result["config"]["changed"]
    assert asked == {"model.filters": f"from=@{'0' * 16}", "epochs": 2.0}
    records.append(tmp_path, record)
    assert "/here" not in (tmp_path / records.FILE).read_text()


def test_a_compressed_file_is_read_in_its_place_and_beside_another(tmp_path):
    folders = [folder_of(tmp_path / "runs", seed=seed) for seed in range(3)]
    for folder in folders:
        records.append(tmp_path, records.of_folder(folder))
    plain = tmp_path / records.FILE
    names, text = [*records.read(plain)], plain.read_bytes()
    plain.unlink()
    one, two = (
        gzip.compress(b"".join(text.splitlines(True)[part])) for part in (slice(1), slice(1, None))
    )
    (tmp_path / "records.jsonl.gz").write_bytes(one + two)  # as cat does
    assert [*records.read(tmp_path)] == names
    assert [record.name for record in records.gather([tmp_path / "records.jsonl.gz"])[0]] == names
    records.append(tmp_path, records.of_folder(folders[0]))
    assert {*records.read(tmp_path)} == {*names}
    (tmp_path / "records.jsonl.gz").write_bytes(two[:-4])
    with pytest.raises(UserError, match=r"records.jsonl.gz: can't be read \(Compressed file ended"):
        records.read(tmp_path)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}: got no run there; allowed are folders of"):
        records.gather([tmp_path])
    with pytest.raises(UserError, match=r"none.jsonl: can't be read \(No such file or directory\)"):
        records.read(tmp_path / "none.jsonl")
    folder = folder_of(tmp_path / "runs")
    file = measured.path(folder, "bank-1")
    measured.kept(file, lambda: 3)
    measured.write_arrays(measured.arrays_path(file), {"x": np.zeros(3)})
    records.append(tmp_path, records.of_folder(folder))
    (arrays,) = (tmp_path / records.ARRAYS).iterdir()
    (found,) = records.read(tmp_path).values()
    arrays.write_bytes(arrays.read_bytes()[:50])
    with pytest.raises(UserError, match=r"\.npz: damaged: .*; put it back beside its records"):
        found.arrays("bank-1")
    records.append(tmp_path, records.of_folder(folder))  # whoever makes the run again mends it
    (found,) = records.read(tmp_path / records.FILE).values()
    np.testing.assert_array_equal(found.arrays("bank-1")["x"], np.zeros(3))
    whole = measured.arrays_path(file).read_bytes()
    measured.arrays_path(file).write_bytes(whole[:50])
    records._load.cache_clear()
    with pytest.raises(UserError, match=r"\.npz: damaged: .*; remove it and bank-1\.json, and "):
        records.of_folder(folder).arrays("bank-1")
    arrays.unlink()
    (found,) = records.read(tmp_path / records.FILE).values()
    with pytest.raises(UserError, match=r"\.npz: No such file or directory; put it back"):
        found.arrays("bank-1")
