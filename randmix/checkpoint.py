"""Saving and restoring a train state with Orbax: asynchronous, the latest two are kept."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from randmix.errors import UserError
from randmix.steps import TrainState

_FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of a workdir; a context manager that waits for the last save on leaving."""

    def __init__(self, workdir: epath.PathLike):
        self.folder = epath.Path(workdir) / _FOLDER
        # An absolute path: Orbax refuses relative ones.
        folder = self.folder if "://" in str(self.folder) else epath.Path(Path(self.folder).absolute())
        self._manager = ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=False)
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write ``state`` in the background; a step that is there already is left as it is."""
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, abstract_state: Any) -> TrainState:
        """Reads the latest checkpoint.

        Args:
            abstract_state: the state as a tree of ``jax.ShapeDtypeStruct`` with the shardings that it is
                wanted with, on any number of devices.

        Raises:
            UserError: no checkpoint, or one of another model or optimizer.
        """
        step = self._require_step()
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        except (ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{self.folder / str(step)}: doesn't hold this config's parameters ({reason}); "
                "use the config that it was trained with, or another workdir"
            ) from error

    def restore_variables(self) -> tuple[int, dict[str, Any]]:
        """Reads what a model needs of the latest checkpoint, and nothing of the optimizer's.

        Returns:
            The step, and the parameters by role with ``batch_stats``, in the shapes that they were saved
            with, on the first device.

        Raises:
            UserError: no checkpoint.
        """
        step = self._require_step()
        # The manager's own restore wants a target for the whole state.
        item = self._manager.directory / str(step) / "default"
        handler = ocp.PyTreeCheckpointHandler()
        saved = handler.metadata(item).tree
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            {name: saved[name] for name in ("params", "batch_stats")},
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        restored = handler.restore(
            item, args=ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True)
        )
        return step, {**restored["params"], "batch_stats": restored["batch_stats"]}

    def _require_step(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UserError(f"{self.folder}: no checkpoint there; train this workdir first")
        return step
