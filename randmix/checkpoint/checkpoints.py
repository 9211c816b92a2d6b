"""Saving and restoring a train state with Orbax: asynchronous, verified, the latest two are kept."""

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
BEST = "best"  # the one that was best on held-out examples
SET_ASIDE = "set_aside"
_ITEM = "default"  # the folder in which Orbax's manager puts a state


class Checkpoints:
    """The checkpoints of a workdir; a context manager that waits for the last save on leaving.

    A checkpoint's folder has its final name, the step, once its manifest is written; older ones are deleted once
    the newest is read back and found to be what the manifest says.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        about: Mapping[str, str] | None = None,
        folder: str = FOLDER,
        kept: int = 2,
    ):
        """Opens a workdir's checkpoints; nothing is made before the first save.

        Args:
            workdir: the run's folder.
            about: what the state belongs to, kept in each manifest and required of what is restored.
            folder: the name of their folder in it.
            kept: how many of the newest are kept.
        """
        self.folder = epath.Path(workdir) / folder
        self._kept = kept
        self._about = dict(about or {})
        self._saving: int | None = None
        # An absolute path: Orbax refuses relative ones.
        self._root = (
            self.folder if "://" in str(self.folder) else epath.Path(Path(self.folder).absolute())
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,  # we delete
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
        """The step of the newest checkpoint, intact or not, or None."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """The steps of the checkpoints, intact or not, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def intact_steps(self) -> list[int]:
        """The steps of the intact checkpoints, the newest first."""
        return [step for step in self.all_steps() if self.damage(step) is None]

    def delete_after(self, step: int) -> None:
        """Deletes the intact checkpoints of later steps, for a run that goes back to this one and takes them again."""
        for later in self.intact_steps():
            if later > step:
                self._manager.delete(later)

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, or None."""
        return manifest.damage(self._root / str(step))

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write ``state`` in the background; a step that is there already is left as it is."""
        if step in self._manager.all_steps():
            return
        self._manager.wait_until_finished()
        self._delete_old()
        self._saving = step
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Waits until what was saved last is on disk, under its name."""
        self._manager.wait_until_finished()

    def restore_latest(self, abstract_state: Any) -> TrainState | None:
        """Reads the newest intact checkpoint; those that aren't are moved to ``set_aside`` beside them.

        Args:
            abstract_state: the state as a tree of ``jax.ShapeDtypeStruct`` with the shardings that it is
                wanted with, on any number of devices.

        Returns:
            The state, or None where nothing was saved yet.

        Raises:
            UserError: a checkpoint of another model or optimizer, or nothing but damaged ones.
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
        """Reads what a model needs of the newest intact checkpoint, and nothing of the optimizer's.

        Returns:
            The step, and the parameters by role with ``batch_stats``, in the shapes that they were saved
            with, on the first device.

        Raises:
            UserError: no checkpoint, or none that is intact.
        """
        step = self._agree(self._newest_intact)
        if step is None:
            raise UserError(f"{self.folder}: no checkpoint there; train this workdir first")
        # The manager's own restore wants a target for the whole state.
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
        """Called by Orbax when all files are there and the folder hasn't its final name yet."""
        if jax.process_index() == 0:
            (unnamed,) = self._root.glob(f"{self._saving}.*tmp*")
            manifest.write(unnamed, {"step": self._saving, **self._about})

    def _delete_old(self) -> None:
        """Deletes all but the newest ones, if the newest is intact."""
        steps = self.all_steps()
        if steps[self._kept :] and self._agree(lambda: self.damage(steps[0]) is None):
            for step in steps[self._kept :]:
                self._manager.delete(step)

    def _newest_intact(self) -> int | None:
        """The step that a reader takes, who leaves the folder as it is; None where there is none."""
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
        """The newest intact step, once those that aren't were moved away."""
        aside = self.folder.parent / SET_ASIDE
        for step in self.all_steps():
            if (damage := self.damage(step)) is None:
                return step
            aside.mkdir(parents=True, exist_ok=True)
            place = _unused(aside / str(step))
            (self._root / str(step)).rename(place)
            logging.getLogger(__name__).warning(
                "%s: damaged (%s); moved to %s, going on from the checkpoint before it",
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
        """What the first process decides on, in every process: a step or None, or a bool."""
        if jax.process_count() == 1:
            return decide()
        # An error of the first process alone would leave the others waiting.
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
    """The path itself, or with the first number behind it that makes it new."""
    number, candidate = 1, path
    while candidate.exists():
        candidate, number = path.parent / f"{path.name}-{number}", number + 1
    return candidate
