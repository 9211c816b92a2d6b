"""Traces of training steps: what is in the files, and that they change nothing."""

import gzip
import json

import command
import jax
import jax.numpy as jnp
import pytest
import small

import randmix
from randmix import masks
from randmix.errors import UserError
from randmix.runtime import distributed
from randmix.runtime.preemption import Preempted
from randmix.training import loop, profiling


def traces(workdir):
    """The events of each Perfetto file."""
    files = sorted(workdir.glob("tensorboard/plugins/profile/*/perfetto_trace.json.gz"))
    return [json.loads(gzip.decompress(file.read_bytes()))["traceEvents"] for file in files]


def annotated(events):
    return [int(e["args"]["step_num"]) for e in events if e.get("name") == "train"]


def follow(steps, workdir, start, stop, said):
    """Traces squares in place of training steps."""
    with profiling.Trace(steps, start, workdir, said.append) as trace:
        for step in range(start + 1, stop + 1):
            trace.begin(step)
            outputs = jax.jit(jnp.square)(jnp.float32(step))
            trace.end(step, outputs)


@pytest.mark.slow
def test_the_steps_that_are_left_are_traced_and_said(tmp_path):
    said = []
    follow(range(2, 5), tmp_path / "whole", 0, 6, said)
    follow(range(2, 5), tmp_path / "resumed", 2, 6, said)
    follow(range(2, 5), tmp_path / "stopped", 0, 2, said)
    follow(range(2, 5), tmp_path / "late", 4, 6, said)
    follow(range(0), tmp_path / "none", 0, 6, said)
    found = {folder.name: traces(folder) for folder in tmp_path.iterdir()}
    assert {name: [annotated(events) for events in each] for name, each in found.items()} == {
        "whole": [[2, 3, 4]],
        "resumed": [[3, 4]],
        "stopped": [[2]],
    }
    assert [line.partition("; for https://ui.perfetto.dev: ")[0] for line in said] == [
        "traced steps 2 to 4",
        "--profile: resumed within these steps, so steps 3 to 4 are traced",
        "traced steps 3 to 4",
        "traced step 2",
        "--profile: step 4 was before this start, so nothing is traced",
    ]
    (file,) = (tmp_path / "whole").rglob("perfetto_trace.json.gz")
    assert said[0].endswith(f": {file}")


def test_only_the_first_process_is_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    said = []
    follow(range(1, 3), tmp_path, 0, 2, said)
    assert not said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("steps", "workdir", "message"),
    [
        (range(5, 8), "run", "got 5:7, allowed are the run's steps, 1 to 6; set others"),
        (range(3), "run", "got 0:2, allowed are the run's steps, 1 to 6; set others"),
        (
            range(1, 7),
            "gs://bucket/run",
            "got the workdir gs://bucket/run, allowed is one on a disk, as JAX's profiler writes "
            "nowhere else; give another --workdir, or leave --profile out",
        ),
    ],
)
def test_steps_that_cannot_be_traced(steps, workdir, message):
    with pytest.raises(UserError) as error:
        profiling.check(steps, 6, workdir)
    assert str(error.value) == f"--profile: {message}"


@pytest.mark.slow
def test_a_signal_during_a_trace_saves_the_run_and_closes_the_trace(tmp_path, monkeypatch, capsys):
    def run():
        steps = range(2, 5)
        loop.train(small.config(), tmp_path, devices=jax.devices()[:1], profile=steps)

    with monkeypatch.context() as patch:
        small.stop_after(patch, 3)
        with pytest.raises(Preempted, match="stopped and saved at step 3 of 6"):
            run()
    assert randmix.load(tmp_path).step == 3
    run()
    assert [annotated(events) for events in traces(tmp_path)] == [[2, 3], [4]]
    run()
    assert capsys.readouterr().out.endswith(
        "nothing to do\n--profile: no steps are left, so nothing is traced\n"
    )


@pytest.mark.slow
def test_a_traced_run_has_the_same_bits(tmp_path):
    flags = ("--config=configs/digits.py:tiny", "--config.steps=5")
    done = command.run("randmix train", *flags, f"--workdir={tmp_path / 'traced'}", "--profile=1:3")
    assert done.status == 0, done.err
    (file,) = (tmp_path / "traced").rglob("perfetto_trace.json.gz")
    assert f"\ntraced steps 1 to 3; for https://ui.perfetto.dev: {file}\n" in done.out
    (events,) = traces(tmp_path / "traced")
    assert annotated(events) == [1, 2, 3]
    runs = {e["args"]["run_id"] for e in events if of_the_train_step(e)}
    assert len(runs) == 3  # executions of the compiled program
    assert not [e for e in events if "backend_compile" in e.get("name", "")]
    assert command.run("randmix train", *flags, f"--workdir={tmp_path / 'plain'}").status == 0
    assert not traces(tmp_path / "plain")
    one, other = (randmix.load(tmp_path / name) for name in ("traced", "plain"))
    assert one.step == other.step == 5
    assert not masks.diff(one.variables, other.variables).moved


def of_the_train_step(event):
    """Whether an event is an operation of the compiled step."""
    return event.get("args", {}).get("hlo_module") == "jit_train_step"
