"""Asynchronous, verified Orbax checkpoints of a train state; the latest ones are kept."""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from randmix.errors import UserError
from randmix.models import with_averages
from randmix.runtime import distributed, durable, signals
from randmix.runtime.preemption import Preempted
from randmix.workdir import manifest

FOLDER = "checkpoints"  # the latest ones
BEST = "best"  # the one that scored best on held-out examples
SET_ASIDE = "set_aside"
_ITEM = "default"  # the folder in a checkpoint that holds the state
_COMMITTED = "commit_success.txt"  # Orbax writes it last into a checkpoint in an object store
_DELETED = ".deleted"  # suffix of a checkpoint that is being deleted


class Checkpoints:
    """The checkpoints of a workdir; a context manager that waits for the last save on exit.

    A checkpoint's folder gets its final name, the step, once its manifest is written and all of it
    is on the disk. Older checkpoints are deleted once the newest has been read back and matches its
    manifest.

    With several processes, all of them save and restore, and process 0 alone lists, verifies, moves
    and deletes folders: on a network file system another process may see them late. What the others
    need to know, process 0 tells them.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        about: Mapping[str, Any] | None = None,
        folder: str = FOLDER,
        kept: int = 2,
    ):
        """Opens a workdir's checkpoints; nothing is created before the first save.

        Args:
            workdir: the run's folder.
            about: identifies the run, as JSON; saved in each manifest and required of a restored
                checkpoint.
            folder: the name of the checkpoints' folder in the workdir.
            kept: the number of checkpoints to keep, the newest ones.
        """
        self.folder = epath.Path(workdir) / folder
        self._kept = kept
        self._about = dict(about or {})
        self._saving: int | None = None  # the last step passed to `save`
        self._saving_about: dict[str, Any] = {}
        self._steps: list[int] | None = None  # the same on all processes; None before listing
        # Orbax refuses relative paths.
        self._root = (
            epath.Path(Path(self.folder).absolute())
            if durable.is_local(self.folder)
            else self.folder
        )
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        # All processes are stopped at one step, so they can wait for each other here.
        if self._saving is not None and (error is None or issubclass(error, Preempted)):
            self.wait()
            self._delete_old()
        self._checkpointer.close()

    def all_steps(self) -> list[int]:
        """Returns the steps of the checkpoints, intact or not, newest first."""
        return sorted(_listed(self._root), reverse=True)

    def intact_steps(self) -> list[int]:
        """Returns the steps of the intact checkpoints, newest first."""
        return [step for step in self.all_steps() if self.damage(step) is None]

    def delete_after(self, step: int) -> None:
        """Deletes the intact checkpoints of later steps, for a run that resumes from this one."""
        for later in self.intact_steps():
            if later > step:
                self._delete(later)
        self._steps = None

    def damage(self, step: int) -> str | None:
        """Returns what is wrong with the files of a checkpoint, or None."""
        return manifest.damage(self._root / str(step))

    def disagreement(self, step: int) -> str | None:
        """Returns how an intact checkpoint differs from its name or from ``about``, or None."""
        return manifest.disagreement(self._root / str(step), self._about)

    def about(self, step: int) -> dict[str, Any]:
        """Returns what the manifest of an intact checkpoint says about it."""
        return manifest.read(self._root / str(step))

    def best_score(self) -> float:
        """Returns the newest intact checkpoint's ``score``, or -inf; sets damaged ones aside."""
        self._steps, score = distributed.decided_by_primary(self._prepared_steps_and_score)
        return score

    def save(self, step: int, state: Any, **about: Any) -> None:
        """Starts to write a state in the background, unless the step is already saved.

        Args:
            step: the step's number, the name of the checkpoint.
            state: a tree of arrays.
            **about: further values for the manifest, as JSON.
        """
        if step in self._known_steps():
            return
        if self._saving is not None:
            self.wait()
            self._delete_old()
        self._saving, self._saving_about = step, about
        # Without `force`, every process would look whether the folder exists.
        self._checkpointer.save(
            self._root / str(step),
            args=ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(state)}),
            force=True,
        )

    def wait(self) -> None:
        """Waits until the last save is on disk under its final name."""
        self._checkpointer.wait_until_finished()
        if self._saving is not None and self._saving not in self._known_steps():
            self._known_steps().insert(0, self._saving)
            if distributed.is_primary():
                durable.flush(self._root, self._root.parent)
            signals.saved()

    def restore_latest(self, abstract_state: Any) -> Any:
        """Restores the newest intact checkpoint; moves newer, damaged ones to ``set_aside``.

        Args:
            abstract_state: a tree of ``jax.ShapeDtypeStruct`` with the wanted shardings, on any
                number of devices.

        Returns:
            The state, or None if nothing that is saved is intact.

        Raises:
            UserError: a checkpoint of another run, model or optimizer.
        """
        self._steps = distributed.decided_by_primary(self._prepared_steps)
        if not self._steps:
            return None
        folder = self._root / str(self._steps[0])
        try:
            handler = ocp.StandardCheckpointHandler()
            return handler.restore(folder / _ITEM, args=ocp.args.StandardRestore(abstract_state))
        except (ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{folder}: doesn't hold this config's parameters ({reason}); "
                "use the config that it was trained with, or another workdir"
            ) from error

    def restore_variables(
        self, step: int | None = None, *, ema: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores the model's variables from a checkpoint, without the optimizer.

        Args:
            step: the checkpoint's step; None for the newest intact checkpoint.
            ema: restore the moving averages in place of what they average; the run must have them.

        Returns:
            What the manifest says about the checkpoint; and the parameters by role with
            ``batch_stats``, in their saved shapes, on the first local device.

        Raises:
            UserError: no checkpoint, none that is intact, or one of another run.
        """
        about = distributed.decided_by_primary(
            lambda: self.about(self._newest_intact() if step is None else self._intact(step))
        )
        # A restore with a target would need one for the complete state.
        item = self._root / str(about["step"]) / _ITEM
        handler = ocp.PyTreeCheckpointHandler()
        saved = handler.metadata(item).tree
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            {name: saved[name] for name in ("params", "batch_stats", *(["ema"] if ema else []))},
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        restored = handler.restore(
            item, args=ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True)
        )
        variables = {**restored["params"], "batch_stats": restored["batch_stats"]}
        return about, with_averages(variables, restored["ema"]) if ema else variables

    def _known_steps(self) -> list[int]:
        """The saved steps, newest first, the same on all processes."""
        if self._steps is None:
            self._steps = distributed.decided_by_primary(self.all_steps)
        return self._steps

    def _write_manifest(self) -> None:
        """Called by Orbax once all files are written, before the folder gets its final name."""
        if distributed.is_primary():
            final = self._root / str(self._saving)
            unfinished = self._checkpointer.get_temporary_path(final).get()
            about = {"step": self._saving, **self._about, **self._saving_about}
            manifest.write(unfinished, about)

    def _delete_old(self) -> None:
        """Deletes all but the newest checkpoints, if the newest is intact."""
        steps = self._known_steps()
        if not steps[self._kept :] or not distributed.is_primary():
            return
        if self.damage(steps[0]) is None:
            for step in steps[self._kept :]:
                self._delete(step)
            del steps[self._kept :]

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint, which is never seen with some of its files gone."""
        folder = self._root / str(step)
        if durable.is_local(folder):
            unnamed = self._root / f"{step}{_DELETED}"
            if unnamed.exists():  # a process was killed while deleting it
                unnamed.rmtree()
            folder = folder.rename(unnamed)
        else:
            (folder / _COMMITTED).unlink(missing_ok=True)
        folder.rmtree()

    def _prepared_steps(self) -> list[int]:
        """Cleans up after an interrupted process; returns the steps, the first of which is intact.

        Raises:
            UserError: the newest intact checkpoint is of another run.
        """
        for remains in _remains(self._root):
            remains.rmtree()
        for step in (steps := self.all_steps()):
            if (damage := self.damage(step)) is None:
                manifest.require_about(self._root / str(step), self._about)
                break
            set_aside(
                self._root / str(step),
                self.folder.parent,
                f"{self.folder / str(step)}: damaged ({damage})",
                ", the next better one replaces it"
                if self.folder.name == BEST
                else ", resuming from the checkpoint before it"
                if step != steps[-1]
                else ", starting from the first step",
            )
        return self.all_steps()

    def _prepared_steps_and_score(self) -> tuple[list[int], float]:
        steps = self._prepared_steps()
        return steps, self.about(steps[0]).get("score", -math.inf) if steps else -math.inf

    def _newest_intact(self) -> int:
        """Returns the newest intact step; changes nothing."""
        found = []
        for step in self.all_steps():
            if (damage := self.damage(step)) is None:
                for line in found:
                    logging.getLogger(__name__).warning("%s; using step %d", line, step)
                manifest.require_about(self._root / str(step), self._about)
                return step
            found.append(f"{self.folder / str(step)}: {damage}")
        reason = f"no checkpoint is intact: {'; '.join(found)}" if found else "no checkpoint there"
        raise UserError(f"{self.folder}: {reason}; {how_to_train(self.folder.parent)}")

    def _intact(self, step: int) -> int:
        """Returns the step if its checkpoint is intact and of this run."""
        if step not in (steps := self.all_steps()):
            kept = ", ".join(map(str, reversed(steps))) or "none"
            raise UserError(
                f"{self.folder}: got step {step}, allowed are those of its checkpoints: {kept}"
            )
        if (damage := self.damage(step)) is not None:
            raise UserError(f"{self.folder / str(step)}: {damage}; choose another step")
        manifest.require_about(self._root / str(step), self._about)
        return step


def how_to_train(workdir: epath.Path) -> str:
    """Returns how to get a workdir's checkpoints, as the end of a sentence."""
    if (workdir / "result.json").exists():  # training a finished run does nothing
        return f"remove {workdir / 'result.json'} and train this workdir again"
    return "train this workdir"


def newest_fingerprint(workdir: epath.Path) -> str | None:
    """Returns the config's fingerprint of the newest intact checkpoint, or None."""
    if not (workdir / FOLDER).exists():
        return None
    with Checkpoints(workdir) as checkpoints:
        steps = checkpoints.intact_steps()
        return checkpoints.about(steps[0]).get(manifest.CONFIG) if steps else None


def set_aside(path: epath.Path, workdir: epath.Path, damage: str, then: str) -> None:
    """Moves a damaged file or folder to the workdir's ``set_aside``, and warns of it.

    The warning says what the damage is, the new place, and what happens then.
    """
    aside = workdir / SET_ASIDE
    durable.make_folder(aside)
    number, place = 1, aside / path.name
    while place.exists():
        place, number = aside / f"{path.name}-{number}", number + 1
    durable.move(path, place)
    logging.getLogger(__name__).warning("%s; moved to %s%s", damage, place, then)


def _listed(root: epath.Path) -> Iterator[int]:
    """Yields the steps of a folder's complete checkpoints."""
    for path in root.iterdir() if root.exists() else ():
        if re.fullmatch(r"0|[1-9][0-9]*", path.name) and (
            durable.is_local(path) or (path / _COMMITTED).exists()
        ):
            yield int(path.name)


def _remains(root: epath.Path) -> list[epath.Path]:
    """Returns the folders that an interrupted save or deletion has left."""
    return [
        path
        for path in (root.iterdir() if root.exists() else ())
        if re.fullmatch(rf"[0-9]+({re.escape(_DELETED)}|\.orbax-checkpoint-tmp.*)", path.name)
    ]
