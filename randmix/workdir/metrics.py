"""A run's metrics: metrics.jsonl, TensorBoard and, optionally, Weights & Biases."""

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from randmix import config as configs
from randmix.errors import UserError
from randmix.runtime import distributed, durable
from randmix.workdir import json_files
from randmix.workdir.checkpoints import set_aside

TENSORBOARD = "tensorboard"
# Records a step's metrics, replacing those that were written before a resume.
Tracker = Callable[[int, Mapping[str, float]], None]


class MetricsLog:
    """metrics.jsonl, one JSON object per line, truncated to the step at which the run starts.

    A killed process loses no line. After ``flush`` a power cut loses none either, so a checkpoint
    that is saved after it is never ahead of the log. An object store can't append to a file; there,
    every write stores the complete log, at most a few hundred kilobytes.

    If lines are damaged, the file is moved to ``set_aside`` and the other lines are kept.

    Attributes:
        names_at_start: names of the metrics that are in the log for the start step.
    """

    def __init__(
        self,
        path: epath.PathLike,
        start_step: int,
        *,
        writes: bool = True,
        trackers: Sequence[Tracker] = (),
    ):
        """Opens the log and drops the lines after ``start_step``, since those steps will run again.

        Args:
            path: the log file.
            start_step: the step at which the run starts.
            writes: False on all processes but one; those leave the file unchanged.
            trackers: further destinations of the same metrics.

        Raises:
            UserError: the file is there but can't be read.
        """
        self._path, self._writes, self._file = epath.Path(path), writes, None
        self._trackers, self._start = trackers, start_step
        try:
            found, damaged = _parsed(self._path)
        except OSError as error:
            raise UserError(
                f"{path}: can't be read ({error.strerror}); start the same command again"
            ) from error
        rows = [row for row in found if row["step"] <= start_step]
        names = {name for row in rows if row["step"] == start_step for name in row}
        # All processes must agree, as they evaluate together, whatever each finds in the file.
        self.names_at_start = set(distributed.decided_by_primary(lambda: sorted(names)))
        if writes:
            if damaged:
                set_aside(self._path, self._path.parent, damaged, ", the other lines are kept")
            self._text = "".join(json.dumps(row) + "\n" for row in rows)
            durable.write(self._path, self._text)
            self._file = self._path.open("a") if durable.is_local(self._path) else None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()

    def write(self, *, step: int, **metrics: Any) -> None:
        """Appends a line, unless the log has had it since before the start.

        An ensemble that was killed between two members' logs has written it to some of them.
        """
        if step == self._start and metrics.keys() <= self.names_at_start:
            return
        line = json.dumps({"step": step, **metrics}) + "\n"
        if self._file:
            self._file.write(line)
            self._file.flush()
        elif self._writes:
            self._text += line
            durable.write(self._path, self._text)
        for tracker in self._trackers:
            tracker(step, metrics)

    def flush(self) -> None:
        """Waits until all lines are on the disk."""
        if self._file:
            os.fsync(self._file.fileno())


def read(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the intact lines of a log, oldest first; [] if there is no file."""
    rows, damaged = _readable(path)
    if damaged:
        logging.getLogger(__name__).warning("%s; using the other lines", damaged)
    return rows


def damage(path: epath.Path) -> str | None:
    """Returns one line on the first damaged line of a log, or None."""
    return _readable(path)[1]


def _readable(path: epath.Path) -> tuple[list[dict[str, Any]], str | None]:
    """As `_parsed`; a file that can't be read is damaged as a whole."""
    try:
        return _parsed(path)
    except OSError as error:
        return [], f"{path}: can't be read ({error.strerror})"


def _parsed(path: epath.Path) -> tuple[list[dict[str, Any]], str | None]:
    """Returns the intact lines of a log and a description of the first damaged one."""
    content = path.read_bytes() if path.exists() else b""
    rows, damaged = [], None
    # A killed run may have left an incomplete last line.
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json_files.parse(line, {str: float})
            json_files.check(row, {"step": int})
            rows.append(row)
        except ValueError as error:
            damaged = damaged or f"{path}: line {number} is damaged ({error})"
    return rows, damaged


@contextlib.contextmanager
def open_trackers(
    workdir: epath.Path,
    start_step: int,
    last_step: int,
    *,
    tensorboard: bool,
    wandb_project: str | None,
    values: Mapping[str, Any],
    sweep: str = "",
    varied: Mapping[str, Any] | None = None,
) -> Iterator[list[Tracker]]:
    """Opens the trackers that a run asks for, and closes them at the end.

    Args:
        workdir: the run's folder.
        start_step: the step at which the run starts.
        last_step: the step at which it ends.
        tensorboard: whether to write TensorBoard's events.
        wandb_project: the project at Weights & Biases, or None.
        values: the config's values, for Weights & Biases to show.
        sweep: the name of the run's sweep, its group at Weights & Biases; "" for none.
        varied: what the sweep's runs differ in, for TensorBoard's table of hyperparameters, where
            the run appears with its last test metrics; None for a run that isn't shown there.

    Raises:
        UserError: Weights & Biases is requested but not installed.
    """
    with contextlib.ExitStack() as stack:
        trackers: list[Tracker] = []
        if tensorboard:
            writer = _tensorboard(workdir / TENSORBOARD, start_step, last_step, varied)
            trackers.append(stack.enter_context(writer))
        if wandb_project is not None:
            trackers.append(stack.enter_context(_wandb(wandb_project, workdir, values, sweep)))
        yield trackers


@contextlib.contextmanager
def _tensorboard(
    folder: epath.Path, start_step: int, last_step: int, varied: Mapping[str, Any] | None
) -> Iterator[Tracker]:
    # tensorboardX imports PyTorch where it finds it, to accept its tensors: 3 s. A None hides it.
    hides = sys.modules.setdefault("torch", None) is None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX import SummaryWriter, summary
    finally:
        if hides:
            del sys.modules["torch"]

    # Purges the steps after the start step, which will run again.
    writer = SummaryWriter(str(folder), purge_step=start_step + 1, write_to_disk=True)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        # "train_loss" as "train/loss": TensorBoard groups by what precedes the slash.
        values = {re.sub(r"^(train|validation|test)_", r"\1/", k): x for k, x in metrics.items()}
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)
        measured = {tag: value for tag, value in values.items() if tag.startswith("test/")}
        if varied is not None and step == last_step and measured:
            assert writer.file_writer is not None  # add_scalar has opened it
            shown = {key: _hyperparameter(value) for key, value in varied.items()}
            for part in summary.hparams(shown, measured):
                writer.file_writer.add_summary(part)
        writer.flush()  # so that a killed run keeps its metrics

    try:
        yield write
    finally:
        writer.close()


def _hyperparameter(value: Any) -> bool | float | str:
    """Returns a value as one of the types that TensorBoard's table of hyperparameters has."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


@contextlib.contextmanager
def _wandb(
    project: str, workdir: epath.Path, values: Mapping[str, Any], sweep: str
) -> Iterator[Tracker]:
    try:
        import wandb  # pyright: ignore[reportMissingImports] (an optional package)
    except ImportError as error:
        raise UserError(
            f"config.wandb_project: got {project!r}, but wandb isn't installed; "
            "pip install 'randmix[wandb]', or leave the key out"
        ) from error
    # Named after the folder and the config, so that the same command resumes the same run there.
    run = wandb.init(
        project=project,
        id=f"{workdir.name}-{configs.fingerprint(values)}",
        name=workdir.name,
        group=sweep or None,
        resume="allow",
        config=dict(values),
        dir=str(workdir),
    )
    try:
        yield lambda step, metrics: run.log(dict(metrics), step=step)
    finally:
        run.finish()
