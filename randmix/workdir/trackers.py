"""Metric destinations besides metrics.jsonl: TensorBoard and, optionally, Weights & Biases."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from etils import epath

from randmix.errors import UserError

TENSORBOARD = "tensorboard"


class Tracker(Protocol):
    """A destination for a step's metrics."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Records a step's metrics, replacing those that were written before a resume."""


@contextmanager
def open_trackers(
    workdir: epath.Path,
    start_step: int,
    *,
    tensorboard: bool,
    wandb_project: str | None,
    config: Mapping[str, Any],
) -> Iterator[list[Tracker]]:
    """Opens the trackers that a run asks for, and closes them at the end.

    Args:
        workdir: the run's folder.
        start_step: the step at which the run starts.
        tensorboard: whether to write TensorBoard's events.
        wandb_project: the project at Weights & Biases, or None.
        config: the run's config, for Weights & Biases to show.

    Raises:
        UserError: Weights & Biases is requested but not installed.
    """
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if tensorboard:
            trackers.append(stack.enter_context(_tensorboard(workdir / TENSORBOARD, start_step)))
        if wandb_project is not None:
            trackers.append(stack.enter_context(_wandb(wandb_project, workdir, config)))
        yield trackers


class _TensorBoard:
    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            # "train_loss" as "train/loss": TensorBoard groups by what precedes the slash.
            split, underscore, rest = name.partition("_")
            tag = (
                f"{split}/{rest}"
                if underscore and split in ("train", "validation", "test")
                else name
            )
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()  # so that a killed run keeps its metrics


@contextmanager
def _tensorboard(folder: epath.Path, start_step: int) -> Iterator[Tracker]:
    from tensorboardX import SummaryWriter

    # Purges the steps after the start step, which will run again.
    writer = SummaryWriter(
        str(folder), purge_step=start_step + 1 if start_step else None, write_to_disk=True
    )
    try:
        yield _TensorBoard(writer)
    finally:
        writer.close()


class _WandB:
    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)


@contextmanager
def _wandb(project: str, workdir: epath.Path, config: Mapping[str, Any]) -> Iterator[Tracker]:
    try:
        import wandb  # pyright: ignore[reportMissingImports] (an optional package)
    except ImportError as error:
        raise UserError(
            f"config.wandb_project: got {project!r}, but wandb isn't installed; "
            "pip install 'randmix[wandb]', or leave the key out"
        ) from error
    # Named after the folder, so that the same command resumes the same run there.
    run = wandb.init(
        project=project,
        id=workdir.name,
        name=workdir.name,
        resume="allow",
        config=dict(config),
        dir=str(workdir),
    )
    try:
        yield _WandB(run)
    finally:
        run.finish()
