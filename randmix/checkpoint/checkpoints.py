"""Asynchronous, verified Orbax checkpoints of a train state; the latest two are kept."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from randmix.checkpoint import manifest
from randmix.errors import UserError
from randmix.steps import TrainState

FOLDER = "checkpoints"  # the latest two
BEST = "best"  # the one that scored best on held-out examples
SET_ASIDE = "set_aside"
_ITEM = "default"  # the folder in which Orbax's manager saves a state


class Checkpoints:
    """The checkpoints of a workdir; a context manager that waits for the last save on exit.

    A checkpoint's folder gets its final name, the step, once its manifest is written. Older
    checkpoints are deleted once the newest has been read back and matches its manifest.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        about: Mapping[str, str] | None = None,
        folder: str = FOLDER,
        kept: int = 2,
    ):
        """Opens a workdir's checkpoints; nothing is created before the first save.

        Args:
            workdir: the run's folder.
            about: identifies the run; saved in each manifest and required of a restored checkpoint.
            folder: the name of the checkpoints' folder in the workdir.
            kept: the number of checkpoints to keep, the newest ones.
        """
        self.folder = epath.Path(workdir) / folder
        self._kept = kept
        self._about = dict(about or {})
        self._saving: int | None = None
        # Orbax refuses relative paths.
        self._root = (
            self.folder if "://" in str(self.folder) else epath.Path(Path(self.folder).absolute())
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,  # we delete them
            create=False,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        self._manager = ocp.CheckpointManager(self._root, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        if error is None and self._saving is not None:
            self._manager.wait_until_finished()
            self._delete_old()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, intact or not, or None."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the steps of the checkpoints, intact or not, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def intact_steps(self) -> list[int]:
        """Returns the steps of the intact checkpoints, newest first."""
        return [step for step in self.all_steps() if self.damage(step) is None]

    def delete_after(self, step: int) -> None:
        """Deletes the intact checkpoints of later steps, for a run that resumes from this one."""
        for later in self.intact_steps():
            if later > step:
                self._manager.delete(later)

    def damage(self, step: int) -> str | None:
        """Returns what is wrong with the files of a checkpoint, or None."""
        return manifest.damage(self._root / str(step))

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write ``state`` in the background, unless the step is already saved."""
        if step in self._manager.all_steps():
            return
        self._manager.wait_until_finished()
        self._delete_old()
        self._saving = step
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Waits until the last save is on disk under its final name."""
        self._manager.wait_until_finished()

    def restore_latest(self, abstract_state: Any) -> TrainState | None:
        """Restores the newest intact checkpoint; moves newer, damaged ones to ``set_aside``.

        Args:
            abstract_state: a tree of ``jax.ShapeDtypeStruct`` with the wanted shardings, on any
                number of devices.

        Returns:
            The state, or None if nothing has been saved.

        Raises:
            UserError: a checkpoint of another model or optimizer, or only damaged checkpoints.
        """
        step = self._agree(self._set_damaged_aside)
        if step is None:
            return None
        folder = self._root / str(step)
        manifest.require_about(folder, self._about)
        try:
            handler = ocp.StandardCheckpointHandler()
            return handler.restore(folder / _ITEM, args=ocp.args.StandardRestore(abstract_state))
        except (ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{self.folder / str(step)}: doesn't hold this config's parameters ({reason}); "
                "use the config that it was trained with, or another workdir"
            ) from error

    def restore_variables(self) -> tuple[int, dict[str, Any]]:
        """Restores the model's variables from the newest intact checkpoint, without the optimizer.

        Returns:
            The step, and the parameters by role with ``batch_stats``, in their saved shapes, on the
            first local device.

        Raises:
            UserError: no checkpoint, or none that is intact.
        """
        step = self._agree(self._newest_intact)
        if step is None:
            raise UserError(f"{self.folder}: no checkpoint there; train this workdir first")
        # The manager's own restore needs a target for the complete state.
        item = self._root / str(step) / _ITEM
        handler = ocp.PyTreeCheckpointHandler()
        saved = handler.metadata(item).tree
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            {name: saved[name] for name in ("params", "batch_stats")},
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        restored = handler.restore(
            item, args=ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True)
        )
        return step, {**restored["params"], "batch_stats": restored["batch_stats"]}

    def _write_manifest(self) -> None:
        """Called by Orbax once all files are written, before the folder gets its final name."""
        if jax.process_index() == 0:
            assert self._saving is not None
            (unnamed,) = self._root.glob(f"{self._saving}.*tmp*")
            manifest.write(unnamed, {"step": self._saving, **self._about})

    def _delete_old(self) -> None:
        """Deletes all but the newest checkpoints, if the newest is intact."""
        steps = self.all_steps()
        if steps[self._kept :] and self._agree(lambda: self.damage(steps[0]) is None):
            for step in steps[self._kept :]:
                self._manager.delete(step)

    def _newest_intact(self) -> int | None:
        """Returns the newest intact step, or None if nothing is saved; changes nothing."""
        found = []
        for step in self.all_steps():
            if (damage := self.damage(step)) is None:
                for line in found:
                    logging.getLogger(__name__).warning("%s; using step %d", line, step)
                return step
            found.append(f"{self.folder / str(step)}: {damage}")
        if found:
            raise UserError(
                f"no checkpoint is intact: {'; '.join(found)}; train this workdir again"
            )
        return None

    def _set_damaged_aside(self) -> int | None:
        """Moves newer, damaged checkpoints away and returns the newest intact step."""
        aside = self.folder.parent / SET_ASIDE
        for step in self.all_steps():
            if (damage := self.damage(step)) is None:
                return step
            aside.mkdir(parents=True, exist_ok=True)
            place = _unused(aside / str(step))
            (self._root / str(step)).rename(place)
            logging.getLogger(__name__).warning(
                "%s: damaged (%s); moved to %s, resuming from the checkpoint before it",
                self.folder / str(step),
                damage,
                place,
            )
            self._manager.reload()
        if aside.exists():
            raise UserError(
                f"{self.folder}: no intact checkpoint is left, the damaged ones are in {aside}; "
                "start again in another workdir, or remove that folder to start again here"
            )
        return None

    def _agree(self, decide: Any) -> Any:
        """Returns the first process's decision, a step, None or a bool, on every process."""
        if jax.process_count() == 1:
            return decide()
        # If only the first process raised, the others would wait forever.
        value, error = -1, None
        if jax.process_index() == 0:
            try:
                value = decide()
            except UserError as mistake:
                value, error = -2, mistake
        value = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if value is None else value)))
        self._manager.reload()
        if error is not None or value == -2:
            raise error or UserError(f"{self.folder}: see the error of the first process")
        return None if value == -1 else value


def _unused(path: epath.Path) -> epath.Path:
    """Returns the path, with the first numeric suffix that makes it unused if it exists."""
    number, candidate = 1, path
    while candidate.exists():
        candidate, number = path.parent / f"{path.name}-{number}", number + 1
    return candidate
