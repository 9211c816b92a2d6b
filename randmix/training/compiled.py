"""Compiled train and eval steps of a run or an ensemble."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from randmix import attacks
from randmix.config import differences
from randmix.data import feeds, loader
from randmix.runtime import sharding
from randmix.training import evaluation as eval_loop
from randmix.training import runs, steps

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
        self._first: tuple[ConfigDict, jax.sharding.Mesh] | None = None

    def require_alike(self, config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
        """Raises a ValueError unless a run matches the first one passed to this method."""
        if self._first is None:
            self._first = (config.copy_and_resolve_references(), mesh)
        first, devices = self._first
        other = [line for line in differences(first, config) if not line.startswith("seed:")]
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
    config: ConfigDict,
    parts: runs.Parts,
    mesh: jax.sharding.Mesh,
    phase: runs.Phase,
    members: int | None = None,
) -> TrainStep:
    """Jits the train step, ``(state, data, order, seed) -> (state, metrics)``.

    The state is donated. ``data``, ``order`` and ``seed`` are as in ``loader.train_batch``. This is
    the only place where the step is jitted.

    Args:
        config: the run's config.
        parts: from ``runs.assemble(config)``.
        mesh: the devices that share each batch.
        phase: one of ``parts.phases``.
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
            batch_size=config.batch_size,
            augmentation=parts.augmentation,
        )
        batch = jax.lax.with_sharding_constraint(batch, sharding.split_batch(mesh))
        if config.defense.epsilon:
            batch = attacks.perturb_batch(
                state.variables, batch, model=parts.model, perturb=_fgsm_samples(config)
            )
        return steps.train_step(
            state,
            batch,
            model=phase.model,
            task=parts.task,
            optimizer=phase.optimizer,
            labels=phase.labels,
            channel_masks=parts.channel_masks,
            label_smoothing=config.label_smoothing,
        )

    if members is not None:
        train_step = jax.vmap(train_step, in_axes=(0, None, 0, 0))
    return jax.jit(train_step, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def jit_eval_steps(
    config: ConfigDict, parts: runs.Parts, mesh: jax.sharding.Mesh, members: int | None = None
) -> dict[str, eval_loop.EvalStep]:
    """Jits the eval steps of a run: "eval" and, with adversarial training, "eval_pgd".

    The arguments are those of ``jit_train_step``. In an ensemble, the variables and the sums have
    its leading axis.
    """
    jit_eval_step = partial(
        eval_loop.jit_eval_step,
        model=parts.model,
        task=parts.task,
        mesh=mesh,
        batch_size=config.batch_size,
        members=members,
    )
    eval_steps = {"eval": jit_eval_step()}
    if config.defense.epsilon:
        eval_steps["eval_pgd"] = jit_eval_step(perturb=_pgd_samples(config))
    return eval_steps


def lower_steps(
    config: ConfigDict, parts: runs.Parts, mesh: jax.sharding.Mesh, members: int | None = None
) -> dict[str, jax.stages.Lowered]:
    """Lowers every step of a run from shapes alone; reads no data and computes nothing.

    Args:
        config: the run's config.
        parts: from ``runs.assemble(config)``.
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

    batches = {"batch_size": config.batch_size, "mesh": mesh}
    state = stacked(parts.abstract_state(mesh))
    data, order = feeds.train_shapes(parts.dataset, examples=parts.train_examples, **batches)
    seed = stacked(jax.ShapeDtypeStruct((), np.uint32))
    lowered = {}
    for phase in parts.phases:
        name = f"train_from_{phase.start_step}" if phase.start_step else "train"
        train_step = jit_train_step(config, parts, mesh, phase, members)
        lowered[name] = train_step.lower(state, data, stacked(order), seed)
    everything = parts.dataset.test_examples
    tested = {"eval": everything, "eval_pgd": min(config.defense.pgd_examples, everything)}
    for name, eval_step in jit_eval_steps(config, parts, mesh, members).items():
        data = feeds.eval_shapes(parts.dataset, examples=tested[name], **batches)
        lowered[name] = eval_step.lower(state.variables, data, 0)
    return lowered


def _fgsm_samples(config: ConfigDict) -> attacks.Perturb:
    """Returns the attack of adversarial training."""
    return partial(
        attacks.fgsm_on_share, epsilon=config.defense.epsilon / 255, share=config.defense.share
    )


def _pgd_samples(config: ConfigDict) -> attacks.Perturb:
    """Returns the attack of "eval_pgd"."""
    count = config.defense.pgd_steps
    return partial(
        attacks.pgd, epsilon=config.defense.epsilon / 255, steps=count, step_size=2.5 / count
    )


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
