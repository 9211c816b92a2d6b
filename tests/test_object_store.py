"""A workdir on gs://: an in-memory stand-in that, like object stores, can't append or rename."""

import json

import jax
import pytest
import small
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from randmix.errors import UserError
from randmix.training import loop as train
from randmix.training import members, runs
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import Checkpoints
from randmix.workdir.metrics import MetricsLog


class ObjectStore(MemoryFileSystem):
    protocol = ("gcs", "gs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def _open(self, path, mode="rb", **arguments):
        assert mode in ("rb", "wb"), f"an object store can't open {path} with mode {mode}"
        return super()._open(path, mode, **arguments)

    def mv(self, *arguments, **options):
        raise AssertionError("an object store can't rename")

    rename = move = mv


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: ObjectStore())
    monkeypatch.setattr(ObjectStore, "store", {})
    return epath.Path("gs://bucket")


@pytest.mark.slow
def test_a_run_whose_workdir_is_there(bucket, tmp_path, monkeypatch, capsys):
    # Orbax writes to gs:// through TensorStore, which has no stand-in.
    monkeypatch.setattr(
        members, "Checkpoints", lambda workdir, **about: Checkpoints(tmp_path / "there", **about)
    )
    config, workdir = small.config(steps=3, tensorboard=False), bucket / "runs" / "a"
    result = train.train(config, workdir, devices=jax.devices()[:1])
    assert sorted(path.name for path in workdir.iterdir()) == [
        "config.json",
        "data.json",
        "masks.txt",
        "metrics.jsonl",
        "result.json",
    ]
    assert runs.read_config(workdir).to_dict() == runs.resolve(config)[0].to_dict()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 3]
    assert {name: value for name, value in rows[-1].items() if name != "step"} == result["metrics"]
    capsys.readouterr()
    assert train.train(config, workdir) == json.loads(json.dumps(result))
    assert (
        capsys.readouterr().out == "gs://bucket/runs/a: finished before, at step 3; nothing to do\n"
    )
    with pytest.raises(UserError, match=r"^gs://bucket/runs/a: holds a run with another config"):
        train.train(small.config(steps=3, seed=1), workdir)


def test_the_log_is_whole_after_each_line(bucket):
    path = bucket / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    with MetricsLog(path, 1) as log:
        assert path.read_text() == '{"step": 1}\n'
        log.write(step=2, loss=0.5)
        assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": 0.5}\n'
        log.write(step=3)
    assert path.read_text().splitlines()[2:] == ['{"step": 3}']


def test_without_the_package_for_it(monkeypatch):
    def missing(name):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", missing)
    folder = epath.Path("gs://bucket/a")
    with pytest.raises(UserError) as error, artifacts.open_workdir(folder, small.config(), ""):
        pass
    assert (
        str(error.value)
        == "gs://bucket/a: Please install gcsfs; pip install 'randmix[gcs]' for gs://"
    )
