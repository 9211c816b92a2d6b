"""The programs that a run compiles: its train step and its eval steps, of one run or of an ensemble."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from randmix import attacks, eval_loop, runs, sharding, steps
from randmix.config import differences
from randmix.data import feeds, loader

TrainStep = Callable[..., tuple[steps.TrainState, dict[str, jax.Array]]]
Program = TypeVar("Program")


class Programs:
    """What was compiled for a run, for all that differ from it in their seed alone and are on the same devices.

    The seed is an argument of every program, so that those of one run serve the others. Reading them back from the
    persistent cache instead takes half a second each, since they are traced and lowered again to be found there.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._first: tuple[ConfigDict, jax.sharding.Mesh] | None = None

    def require_alike(self, config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
        """Raises a ValueError for a run that isn't like the first one that this was called for."""
        if self._first is None:
            self._first = (config.copy_and_resolve_references(), mesh)
        first, devices = self._first
        other = [line for line in differences(first, config) if not line.startswith("seed:")]
        if mesh != devices:
            other.append("devices")
        if other:
            raise ValueError(
                f"these programs are of another run ({'; '.join(other)}); share them between runs that differ in their "
                "seed only"
            )

    def __contains__(self, name: Hashable) -> bool:
        return name in self._made

    def once(self, name: Hashable, make: Callable[[], Program]) -> Program:
        """The program of a name; the first to ask for it makes it."""
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
    """The one place where the train step is jitted: ``(state, data, order, seed) -> (state, metrics)``.

    The state is donated. ``data``, ``order`` and ``seed`` are as in ``loader.train_batch``.

    Args:
        config: of the run.
        parts: from ``runs.assemble(config)``.
        mesh: the devices that share each batch.
        phase: of ``parts``.
        members: None for one run, or of how many an ensemble is: all but ``data`` then has a first axis of that
            length; see ``randmix.ensemble``.
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
    """What an evaluation during the run takes: "eval" and, in a defended run, "eval_pgd".

    The arguments are those of ``jit_train_step``; of an ensemble the variables and the sums have its axis.
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
    """Every step that a run compiles, lowered from shapes alone: no data are read, nothing is computed.

    Args:
        config: of the run.
        parts: from ``runs.assemble(config)``.
        mesh: of devices that needn't be there; see ``aot``.
        members: as in ``jit_train_step``.

    Returns:
        "train" ("train_from_5" for a phase that begins after 5 steps), "eval" and, in a defended run, "eval_pgd".
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
    """What training is defended with."""
    return partial(
        attacks.fgsm_on_share, epsilon=config.defense.epsilon / 255, share=config.defense.share
    )


def _pgd_samples(config: ConfigDict) -> attacks.Perturb:
    """What a defended run is also tested with."""
    count = config.defense.pgd_steps
    return partial(
        attacks.pgd, epsilon=config.defense.epsilon / 255, steps=count, step_size=2.5 / count
    )


def memory_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled program needs of each device: arguments, results, temporaries and itself, donated ones once."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
