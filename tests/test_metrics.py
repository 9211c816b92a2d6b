"""Trackers: the metrics that TensorBoard and Weights & Biases receive."""

import struct
import sys
import types

import pytest
import small
from tensorboardX.proto import event_pb2

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
        (v.tag, event.step, v.simple_value) for event in events(folder) for v in event.summary.value
    ]


def opened_by(config, workdir, start_step):
    return metrics.open_trackers(
        workdir,
        start_step,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        values=config.to_dict(),
    )


def write(config, workdir, start_step, steps):
    with (
        opened_by(config, workdir, start_step) as opened,
        MetricsLog(workdir / "metrics.jsonl", start_step, trackers=opened) as log,
    ):
        for step in steps:
            log.write(step=step, train_loss=step / 2, learning_rate=0.25)
            log.write(step=step, test_accuracy=0.5)


def test_tensorboard_gets_what_the_log_gets_and_forgets_what_runs_again(tmp_path):
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
    starts = [e for e in events(tmp_path / "tensorboard") if e.session_log.status == 1]
    # TensorBoard drops earlier events of this step or a later one.
    assert [event.step for event in starts] == [2]


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path):
    write(small.config(tensorboard=False), tmp_path, 0, (1,))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_weights_and_biases_resumes_the_folders_run(tmp_path, monkeypatch):
    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.finished = options, [], False
            made.append(self)

        def log(self, metrics, step):
            self.logged.append((step, metrics))

        def finish(self):
            self.finished = True

    made = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    config = small.config(tensorboard=False)
    config.wandb_project = "mixing"
    write(config, tmp_path, 0, (3,))
    (run,) = made
    assert run.logged == [
        (3, {"train_loss": 1.5, "learning_rate": 0.25}),
        (3, {"test_accuracy": 0.5}),
    ]
    assert run.finished
    asked = {key: run.options[key] for key in ("project", "id", "resume", "dir")}
    assert asked == {
        "project": "mixing",
        "id": tmp_path.name,
        "resume": "allow",
        "dir": str(tmp_path),
    }
    assert run.options["config"]["model"]["width"] == 16


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
