"""Compiled train and eval steps of a run or an ensemble."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from randmix import attacks
from randmix.config import differences
from randmix.data import feeds, loader
from randmix.data.keys import step_key
from randmix.runtime import sharding
from randmix.training import evaluation, runs, steps

TrainStep = Callable[..., tuple[steps.TrainState, dict[str, jax.Array]]]
Program = TypeVar("Program")


class Programs:
    """A cache of compiled programs for runs that differ only in their seed, on the same devices.

    The seed is an argument of every program, so the programs of one run serve the others. Reading
    them from the persistent cache instead takes half a second each, since JAX must trace and lower
    a program to look it up.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._first: tuple[Mapping[str, Any], jax.sharding.Mesh] | None = None

    def require_alike(self, parts: runs.Parts, mesh: jax.sharding.Mesh) -> None:
        """Raises a ValueError unless a run matches the first one passed to this method."""
        if self._first is None:
            self._first = (parts.record.config, mesh)
        config, devices = self._first
        other = differences({**config, "seed": parts.seed}, parts.record.config)
        if mesh != devices:
            other.append("devices")
        if other:
            raise ValueError(
                f"these programs are of another run ({'; '.join(other)}); share them between runs "
                "that differ in their seed only"
            )

    def __contains__(self, name: Hashable) -> bool:
        return name in self._made

    def once(self, name: Hashable, make: Callable[[], Program]) -> Program:
        """Returns the program of a name; the first call creates it with ``make``."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def jit_train_step(
    options: runs.StepOptions,
    phase: runs.Phase,
    mesh: jax.sharding.Mesh,
    members: int | None = None,
) -> TrainStep:
    """Jits the train step, ``(state, data, order, seed) -> (state, metrics)``.

    The state is donated. ``data``, ``order`` and ``seed`` are as in ``loader.train_batch``. This is
    the only place where the step is jitted.

    Args:
        options: the run's ``Parts.step``.
        phase: one of its phases.
        mesh: the devices that share each batch.
        members: None for a single run, or the size of an ensemble; every argument but ``data`` then
            has a leading axis of that length. See ``randmix.training.ensemble``.
    """

    def train_step(
        state: steps.TrainState, data: loader.Data, order: jax.Array | None, seed: jax.Array
    ) -> tuple[steps.TrainState, dict[str, jax.Array]]:
        batch = loader.train_batch(
            data,
            order,
            state.step,
            seed,
            batch_size=options.batch_size,
            augmentation=options.augmentation,
        )
        batch = jax.lax.with_sharding_constraint(batch, sharding.split_batch(mesh))
        perturb = None
        if options.perturb is not None:
            attacked = jnp.arange(options.batch_size) < round(options.share * options.batch_size)
            batch = {**batch, "attacked": attacked}
            perturb = partial(attacks.perturb_batch, model=options.model, perturb=options.perturb)
        return steps.train_step(
            state,
            batch,
            model=phase.model,
            task=options.task,
            optimizer=phase.optimizer,
            labels=phase.labels,
            channel_masks=options.channel_masks,
            label_smoothing=options.label_smoothing,
            perturb=perturb,
            accumulate=options.accumulate,
            ema=options.ema,
            key=step_key(seed, state.step) if options.draws else None,
        )

    if members is not None:
        train_step = jax.vmap(train_step, in_axes=(0, None, 0, 0))
    return jax.jit(train_step, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def jit_eval_steps(
    options: runs.StepOptions, mesh: jax.sharding.Mesh, members: int | None = None
) -> dict[str, evaluation.EvalStep]:
    """Jits the eval steps of a run: "eval" and, with adversarial training, "eval_pgd".

    The arguments are those of ``jit_train_step``. In an ensemble, the variables and the sums have
    its leading axis.
    """
    attacked = {} if options.perturb_test is None else {"eval_pgd": options.perturb_test}
    return {
        name: evaluation.jit_eval_step(
            model=options.model,
            task=options.task,
            mesh=mesh,
            batch_size=options.micro_batch_size,
            perturb=perturb,
            members=members,
        )
        for name, perturb in {"eval": None, **attacked}.items()
    }


def lower_steps(
    parts: runs.Parts, mesh: jax.sharding.Mesh, members: int | None = None
) -> dict[str, jax.stages.Lowered]:
    """Lowers every step of a run from shapes alone; reads no data and computes nothing.

    Args:
        parts: the run's parts.
        mesh: the devices, which need not exist; see ``aot``.
        members: as in ``jit_train_step``.

    Returns:
        "train" (or "train_from_5" for a phase that begins after 5 steps), "eval" and, with
        adversarial training, "eval_pgd".
    """

    def stacked(tree: Any) -> Any:
        axis, whole = () if members is None else (members,), sharding.replicated(mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*axis, *x.shape), x.dtype, sharding=whole), tree
        )

    dataset = parts.data.dataset
    state = stacked(parts.abstract_state(mesh))
    data, order = feeds.train_shapes(
        dataset, examples=parts.data.train_examples, batch_size=parts.step.batch_size, mesh=mesh
    )
    seed = stacked(jax.ShapeDtypeStruct((), np.uint32))
    lowered = {}
    for phase in parts.step.phases:
        name = f"train_from_{phase.start_step}" if phase.start_step else "train"
        train_step = jit_train_step(parts.step, phase, mesh, members)
        lowered[name] = train_step.lower(state, data, stacked(order), seed)
    everything = dataset.test_examples
    tested = {"eval": everything, "eval_pgd": min(parts.data.pgd_examples, everything)}
    for name, eval_step in jit_eval_steps(parts.step, mesh, members).items():
        data = feeds.eval_shapes(
            dataset, examples=tested[name], batch_size=parts.step.micro_batch_size, mesh=mesh
        )
        lowered[name] = eval_step.lower(state.variables, data, 0)
    return lowered


def memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Per-device memory of a compiled program, in bytes.

    Sums arguments, results, temporaries and the program itself; donated buffers count once.
    """
    memory = compiled.memory_analysis()
    assert memory is not None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
