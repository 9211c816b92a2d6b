"""A trace of some training steps, which TensorBoard's profiler and Perfetto show."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from randmix.errors import UserError
from randmix.runtime import distributed, durable
from randmix.workdir.metrics import TENSORBOARD


def check(steps: range, total_steps: int, workdir: epath.PathLike) -> None:
    """Raises a UserError unless a run of ``total_steps`` steps in a folder can trace the steps."""
    if not steps:
        return
    first, last = steps[0], steps[-1]
    if first < 1 or last > total_steps:
        raise UserError(
            f"--profile: got {first}:{last}, allowed are the run's steps, 1 to {total_steps}; "
            "set others"
        )
    if not durable.is_local(workdir):
        raise UserError(
            f"--profile: got the workdir {workdir}, allowed is one on a disk, as JAX's profiler "
            "writes nowhere else; give another --workdir, or leave --profile out"
        )


class Trace:
    """A context in which consecutive training steps are traced into ``WORKDIR/tensorboard``.

    The trace holds a "train" annotation for each step, which includes the wait for its batch; the
    operations on the devices; and the calls of Python. Whatever ends the context closes the trace.

    Process 0 alone is traced: all processes run the same program, and JAX's export to Perfetto
    fails where a second host writes to its folder.
    """

    def __init__(
        self, steps: range, start_step: int, workdir: epath.PathLike, say: Callable[[str], object]
    ):
        """Says which of the steps are left if the run resumes within or after them.

        Args:
            steps: the steps to trace, from 1; empty for none.
            start_step: the step from which the run starts or resumes.
            workdir: the run's folder.
            say: prints a line.
        """
        steps = steps if distributed.is_primary() else range(0)
        self._left = range(max(steps.start, start_step + 1), steps.stop)
        self._folder, self._say = epath.Path(workdir) / TENSORBOARD, say
        self._open, self._annotated = contextlib.ExitStack(), contextlib.ExitStack()
        if steps and not self._left:
            say(f"--profile: step {steps[-1]} was before this start, so nothing is traced")
        elif len(self._left) < len(steps):
            say(f"--profile: resumed within these steps, so {_in_words(self._left)} are traced")

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        self._annotated.close()
        self._open.close()

    def begin(self, step: int) -> None:
        """Marks the start of a step, and starts the trace before the first one."""
        if step not in self._left:
            return
        if step == self._left[0]:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._open.callback(self._write)
        self._traced = range(self._left[0], step + 1)
        self._annotated.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    def end(self, step: int, outputs: Any) -> None:
        """Marks the end of a step; after the last one, waits for its outputs and ends the trace."""
        self._annotated.close()
        if self._left and step == self._left[-1]:
            jax.block_until_ready(outputs)
            self._open.close()

    def _write(self) -> None:
        jax.profiler.stop_trace()
        file = max(self._folder.glob("plugins/profile/*/perfetto_trace.json.gz"))  # by its time
        self._say(f"traced {_in_words(self._traced)}; for https://ui.perfetto.dev: {file}")


def _in_words(steps: range) -> str:
    return f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
