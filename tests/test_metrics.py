"""Trackers: the metrics that TensorBoard and Weights & Biases receive."""

import errno
import importlib
import itertools
import struct
import sys
import time
import types

import pytest
import small
from etils import epath
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from randmix import config as configs
from randmix.errors import UserError
from randmix.workdir import metrics
from randmix.workdir.metrics import MetricsLog


def events(folder):
    """All events in TensorBoard's files: records of length, checksum, event, checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(folder):
    return [
        (v.tag, event.step, v.simple_value)
        for event in events(folder)
        for v in event.summary.value
        if not v.HasField("metadata")
    ]


def hyperparameters(folder):
    """The contents of the hparams plugin's summaries, in the order of writing."""
    return [
        plugin_hparams_pb2.HParamsPluginData.FromString(v.metadata.plugin_data.content)
        for event in events(folder)
        for v in event.summary.value
        if v.metadata.plugin_data.plugin_name == "hparams"
    ]


def opened_by(config, workdir, start_step, **sweep):
    return metrics.open_trackers(
        workdir,
        start_step,
        3,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        values=config.to_dict(),
        **sweep,
    )


def write(config, workdir, start_step, steps, **sweep):
    with (
        opened_by(config, workdir, start_step, **sweep) as opened,
        MetricsLog(workdir / "metrics.jsonl", start_step, trackers=opened) as log,
    ):
        for step in steps:
            log.write(step=step, train_loss=step / 2, learning_rate=0.25)
            log.write(step=step, test_accuracy=0.5)


def one_second_each_time(monkeypatch):
    """Moves the clock on: files are named after the second in which they are opened."""
    clock = itertools.count(2e9)
    monkeypatch.setattr(time, "time", lambda: next(clock))


def test_tensorboard_gets_what_the_log_gets_and_forgets_what_runs_again(tmp_path, monkeypatch):
    one_second_each_time(monkeypatch)
    write(small.config(), tmp_path, 0, (1, 2))
    expected = [
        (tag, step, value)
        for step in (1, 2)
        for tag, value in (
            ("train/loss", step / 2),
            ("learning_rate", 0.25),
            ("test/accuracy", 0.5),
        )
    ]
    assert scalars(tmp_path / "tensorboard") == expected
    write(small.config(), tmp_path, 1, (2,))
    write(small.config(), tmp_path, 0, (1,))
    starts = [e for e in events(tmp_path / "tensorboard") if e.session_log.status == 1]
    # TensorBoard drops earlier events of this step or a later one.
    assert [event.step for event in starts] == [1, 2, 1]


def test_tensorboard_gets_what_the_runs_of_a_sweep_differ_in_once(tmp_path, monkeypatch):
    one_second_each_time(monkeypatch)
    varied = {"model.width": 8, "optimizer.nesterov": False, "mode": "full", "train": None}
    varied |= {"schedule.boundaries": [0.5, 0.75], "optimizer.learning_rate": 0.1}
    folder = tmp_path / "tensorboard"
    write(small.config(), tmp_path, 0, (1, 2), varied=varied)
    assert not hyperparameters(folder)  # the run isn't at its end
    write(small.config(), tmp_path, 2, (3,), varied=varied)
    experiment, start, end = hyperparameters(folder)
    assert {x.name for x in experiment.experiment.hparam_infos} == varied.keys()
    assert [x.name.tag for x in experiment.experiment.metric_infos] == ["test/accuracy"]
    assert "test/accuracy" in {tag for tag, _, _ in scalars(folder)}
    given = {
        key: getattr(value, value.WhichOneof("kind"))
        for key, value in start.session_start_info.hparams.items()
    }
    assert given == varied | {"train": "null", "schedule.boundaries": "[0.5, 0.75]"}
    assert type(given["optimizer.nesterov"]) is bool
    assert end.session_end_info.status == 1  # success
    write(small.config(), tmp_path, 3, (3,), varied=varied)  # killed before its result
    assert len(hyperparameters(folder)) == 3


def test_tensorboard_does_not_import_pytorch(tmp_path, monkeypatch):
    for name in ["torch", *(name for name in sys.modules if name.startswith("tensorboardX"))]:
        monkeypatch.setitem(sys.modules, name, None)  # so that the end restores it
        del sys.modules[name]
    torch = tmp_path / "site" / "torch.py"
    torch.parent.mkdir()
    torch.write_text("imported = True")
    monkeypatch.syspath_prepend(torch.parent)
    write(small.config(), tmp_path, 0, (3,))
    assert "tensorboardX" in sys.modules
    assert "torch" not in sys.modules
    assert importlib.import_module("torch").imported  # it can still be


def test_tensorboard_has_no_table_of_hyperparameters_without_a_sweep(tmp_path):
    write(small.config(), tmp_path, 0, (3,))
    assert not hyperparameters(tmp_path / "tensorboard")


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path):
    write(small.config(tensorboard=False), tmp_path, 0, (1,))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_weights_and_biases_resumes_the_folders_run(tmp_path, monkeypatch):
    made = stand_in_for_wandb(monkeypatch)
    config = small.config(tensorboard=False)
    config.wandb_project = "mixing"
    write(config, tmp_path, 0, (3,))
    (run,) = made
    assert run.logged == [
        (3, {"train_loss": 1.5, "learning_rate": 0.25}),
        (3, {"test_accuracy": 0.5}),
    ]
    assert run.finished
    assert run.options.pop("config")["model"]["width"] == 16
    assert run.options == {
        "project": "mixing",
        "id": f"{tmp_path.name}-{configs.fingerprint(config)}",
        "name": tmp_path.name,
        "group": None,
        "resume": "allow",
        "dir": str(tmp_path),
    }


def test_weights_and_biases_groups_the_runs_of_a_sweep(tmp_path, monkeypatch):
    made = stand_in_for_wandb(monkeypatch)
    config = small.config(tensorboard=False, wandb_project="mixing")
    write(config, tmp_path, 0, (3,), sweep="widths")
    assert made[0].options["group"] == "widths"


def stand_in_for_wandb(monkeypatch):
    """Stands in for wandb, and returns the list of the runs that are made."""

    class Run:
        def __init__(self, options):
            unknown = options.keys() - WANDB_INIT
            assert not unknown
            self.options, self.logged, self.finished = options, [], False
            made.append(self)

        def log(self, data, step=None, commit=None):
            self.logged.append((step, data))

        def finish(self, exit_code=None):
            self.finished = True

    made = []
    module = types.SimpleNamespace(init=lambda **options: Run(options))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


# The parameters of `wandb.init`, which are the same in wandb 0.19 and 0.31.
WANDB_INIT = {
    "allow_val_change", "anonymous", "config", "config_exclude_keys", "config_include_keys", "dir",
    "entity", "force", "fork_from", "group", "id", "job_type", "mode", "monitor_gym", "name",
    "notes", "project", "reinit", "resume", "resume_from", "save_code", "settings",
    "sync_tensorboard", "tags", "tensorboard",
}  # fmt: skip


def test_weights_and_biases_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = small.config()
    config.wandb_project = "mixing"
    with pytest.raises(UserError) as error:
        write(config, tmp_path, 0, ())
    assert str(error.value) == (
        "config.wandb_project: got 'mixing', but wandb isn't installed; "
        "pip install 'randmix[wandb]', or leave the key out"
    )


def test_a_log_that_cannot_be_read_stays_as_it_is(tmp_path, monkeypatch):
    file = epath.Path(tmp_path) / "metrics.jsonl"
    with MetricsLog(file, 0) as log:
        log.write(step=2, train_loss=0.5)
    before = file.read_text()

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(type(file), "read_bytes", stale)
        with pytest.raises(UserError) as error:
            MetricsLog(file, 2)
    assert str(error.value) == (
        f"{file}: can't be read (Stale file handle); start the same command again"
    )
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_the_log_has_since_before_the_start_is_not_repeated(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with MetricsLog(file, 0) as log:
        log.write(step=2, train_loss=0.5)
        log.write(step=2, test_loss=0.25)
    before = file.read_text()
    with MetricsLog(file, 2) as log:
        log.write(step=2, test_loss=0.25)
        assert file.read_text() == before
        log.write(step=3, test_loss=0.25)
    assert len(file.read_text().splitlines()) == 3
