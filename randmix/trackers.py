"""Where metrics go besides metrics.jsonl: TensorBoard events, and Weights & Biases on request."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from etils import epath
from ml_collections import ConfigDict

from randmix.errors import UserError

TENSORBOARD = "tensorboard"


class Tracker(Protocol):
    """What takes the metrics of a step."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics; of a step that ran before a resume, too, in which case the newer ones count."""


@contextmanager
def open_trackers(
    config: ConfigDict, workdir: epath.Path, start_step: int, *, active: bool = True
) -> Iterator[list[Tracker]]:
    """The trackers that a config asks for, closed at the end.

    Args:
        config: see ``randmix.config``.
        workdir: the run's folder.
        start_step: that the run starts from.
        active: False on all processes but one: there are none then.

    Raises:
        UserError: Weights & Biases is asked for and isn't installed.
    """
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if active and config.tensorboard:
            trackers.append(stack.enter_context(_tensorboard(workdir / TENSORBOARD, start_step)))
        if active and config.wandb_project is not None:
            trackers.append(stack.enter_context(_wandb(config, workdir)))
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
        self._writer.flush()  # a killed run keeps what it logged


@contextmanager
def _tensorboard(folder: epath.Path, start_step: int) -> Iterator[Tracker]:
    from tensorboardX import SummaryWriter

    # Hides the steps after the one that this run starts from: they will run again.
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
def _wandb(config: ConfigDict, workdir: epath.Path) -> Iterator[Tracker]:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.wandb_project: got {config.wandb_project!r}, but wandb isn't installed; "
            "pip install 'randmix[wandb]', or leave the key out"
        ) from error
    # The name and id are the folder's: the same command goes on with the same run there.
    run = wandb.init(
        project=config.wandb_project,
        id=workdir.name,
        name=workdir.name,
        resume="allow",
        config=config.to_dict(),
        dir=str(workdir),
    )
    try:
        yield _WandB(run)
    finally:
        run.finish()
