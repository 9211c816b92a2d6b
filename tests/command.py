"""Runs a program of the project as a person would, each in a process of its own that starts quickly."""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]

# A server that has imported everything once, and has started no JAX backend, forks a process for each run.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["randmix.cli", "randmix.train", "tensorflow_datasets"])


class Done(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str


def run(
    module: str,
    *arguments: object,
    env: dict[str, str] | None = None,
    cwd: Path = REPOSITORY,
    limit: float = 120,
) -> Done:
    """``python -m module arguments...``, to its end within so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        environment = {"JAX_PLATFORMS": "cpu", "TFDS_DATA_DIR": os.environ["TFDS_DATA_DIR"], **(env or {})}
        process = _PROCESSES.Process(
            target=_main,
            args=(module, [str(a) for a in arguments], str(out), str(err), environment, str(cwd)),
        )
        process.start()
        process.join(limit)
        assert process.exitcode is not None, f"{module} {arguments}: still running after {limit} s"
        return Done(process.exitcode, out.read_text(), err.read_text())


def _main(
    module: str, arguments: list[str], out: str, err: str, environment: dict[str, str], cwd: str
) -> None:
    os.chdir(cwd)
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = [module, *arguments]
    sys.path.insert(0, cwd)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
