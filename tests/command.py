"""Runs the project's programs as a user would, each in its own, quickly started process."""

import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]

# A server that imports everything once, and starts no JAX backend, forks a process for each run.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["randmix.runtime.cli", "randmix.training.loop", "tensorflow_datasets"]
)


class Done(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str


def run(
    program: str,
    *arguments: object,
    env: dict[str, str] | None = None,
    cwd: Path = REPOSITORY,
    limit: float = 120,
) -> Done:
    """Runs ``python -m program arguments...`` to its end, at most ``limit`` seconds.

    The program is a module, or "randmix COMMAND".
    """
    with started(program, *arguments, env=env, cwd=cwd) as running:
        running.process.join(limit)
        assert running.process.exitcode is not None, (
            f"{program} {arguments}: still running after {limit} s"
        )
        return Done(running.process.exitcode, running.out(), running.err())


class Started(NamedTuple):
    """A running program, and the files that hold its output."""

    process: multiprocessing.process.BaseProcess
    out_file: Path
    err_file: Path

    def out(self) -> str:
        """What it has printed so far; "" before it starts."""
        return self.out_file.read_text() if self.out_file.exists() else ""

    def err(self) -> str:
        """The same for standard error."""
        return self.err_file.read_text() if self.err_file.exists() else ""


@contextlib.contextmanager
def started(
    program: str, *arguments: object, env: dict[str, str] | None = None, cwd: Path = REPOSITORY
) -> Iterator[Started]:
    """Starts ``python -m program arguments...``; kills it if it outlives the context."""
    module, *words = [*program.split(), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        environment = {
            "JAX_PLATFORMS": "cpu",
            "TFDS_DATA_DIR": os.environ["TFDS_DATA_DIR"],
            **(env or {}),
        }
        process = _PROCESSES.Process(
            target=_main,
            args=(module, words, str(out), str(err), environment, str(cwd)),
        )
        process.start()
        try:
            yield Started(process, out, err)
        finally:
            process.kill()
            process.join()


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
