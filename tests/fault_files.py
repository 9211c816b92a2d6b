"""Faults of files for tests/faults.py: each file of a workdir is damaged, and the run goes on."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from fault_cases import Case, end_of, require, stopped_run

import randmix
from randmix.analysis.verify import findings
from randmix.workdir import artifacts
from randmix.workdir.checkpoints import BEST, FOLDER

ORBAX_TIMES = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def damage(case: Case, rng: np.random.Generator, *, cut: bool) -> tuple[int, str]:
    """Flips a bit of, or truncates, each file of the newest checkpoint, one at a time; resumes."""
    whole = stopped_run(case, 20, case.workdir())
    folders = [newest(whole / name) for name in (FOLDER, BEST) if (whole / name).exists()]
    files = [
        path.relative_to(whole)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    for name in files:
        workdir = shutil.copytree(whole, case.workdir())
        content = bytearray((workdir / name).read_bytes())
        if cut:
            content = content[: rng.integers(len(content))]
        else:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (workdir / name).write_bytes(content)
        found = [problem for _, problem in findings(epath.Path(workdir)) if problem]
        inner = "/".join(name.parts[2:])
        # Orbax's own two hold times of the save and nothing of the state.
        require(
            any(inner in problem for problem in found) or name.name in ORBAX_TIMES,
            f"{workdir}: {name} was damaged, but verify finds {found}",
        )
        done = case.finish(workdir)
        require(
            f"damaged ({inner} " in done.err
            or f"damaged (the SHA-256 of {inner} " in done.err
            or name.parts[0] == BEST
            or name.name in ORBAX_TIMES,
            f"{workdir}: {name} was damaged, but not reported: {done.err}",
        )
        case.compare(workdir, best=name.parts[0] != BEST)
    return len(files), "files"


def newest(folder: Path) -> Path:
    return max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: random.Random(0).randbytes(len(content)),
    "nested": lambda content: b"[" * 100_000,
    "another": lambda content: b'{"seed": "0", "step": []}\n',
    "gone": lambda content: None,
}
"""Damages by name: the new content of a file, or None to remove it."""


def other_files(case: Case, finished: bool, damages: Sequence[str]) -> tuple[int, str]:
    """Damages each file beside the checkpoints, of a stopped or a finished run; trains it again."""
    whole = case.workdir()
    if finished:
        case.finish(whole)
    else:
        stopped_run(case, 20, whole)
    files = sorted(path for path in whole.iterdir() if path.is_file())
    for file in files:
        for name in damages:
            workdir = shutil.copytree(whole, case.workdir())
            content = DAMAGES[name](file.read_bytes())
            (workdir / file.name).unlink()
            if content is not None:
                (workdir / file.name).write_bytes(content)
            read_by_all(workdir)
            case.finish(workdir)
            if finished and file.name == artifacts.METRICS:
                shutil.rmtree(workdir)  # a finished run's lost log stays lost
            else:
                without_lost_lines(case, workdir, file.name)
    state = "finished" if finished else "stopped"
    return len(files) * len(damages), f"files of a {state} run, each damaged in {len(damages)} ways"


def without_lost_lines(case: Case, workdir: Path, name: str) -> None:
    """Compares a finished run whose log, if that was damaged, may lack its earliest lines."""
    if name == artifacts.METRICS:
        rows, expected = end_of(workdir)[0], case.expected[0]
        require(
            all(row in expected for row in rows) and rows[-20:] == expected[-20:],
            f"{workdir}: other last lines in metrics.jsonl than {case.reference}",
        )
        lines = (case.reference / artifacts.METRICS).read_text()
        (workdir / artifacts.METRICS).write_text(lines)
    case.compare(workdir)


def read_by_all(workdir: Path) -> None:
    """Reads a workdir as verify and evaluate do: every refusal must be one line."""
    for read in (lambda: [*findings(epath.Path(workdir))], lambda: randmix.load(workdir)):
        try:
            read()
        except ValueError as error:
            require(
                isinstance(error, randmix.errors.UserError) and "\n" not in str(error),
                f"{workdir}: {type(error).__name__}: {error}",
            )
