"""Accuracy under attack: curves over epsilon for an entire split.

Every example is attacked at every epsilon, and the curves record whether it is still classified
correctly. The arithmetic is float32 whatever the model was trained in: bfloat16 would round small
perturbations away and hide gradients.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from randmix import attacks
from randmix.data import arrays, loader
from randmix.runtime import sharding
from randmix.training import evaluation as eval_loop
from randmix.training import tasks
from randmix.training.compiled import Programs

Track = Callable[[Iterable[Any], int, str], Iterator[Any]]
Program = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        attacks: keys of ``attacks.ATTACKS``; must include "noise".
        epsilons: radii in 1/255, ascending.
        norm: "linf" or "l2".
        seed: seed of the noise and the random starts; an example's draws depend only on the seed
            and the example's position.
        batch_size: number of images that the devices process at once.
        pgd: arguments of the attack "pgd".
        strong: arguments of the attack "strong".
    """

    attacks: tuple[str, ...]
    epsilons: tuple[float, ...]
    norm: str = "linf"
    seed: int = 0
    batch_size: int = 128
    pgd: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"steps": 10, "step_size": 0.25}
    )
    strong: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Measured accuracies.

    Attributes:
        settings: what was measured.
        clean: accuracy in [0, 1] without an attack, from the ordinary evaluation.
        correct: for each attack, whether each example is still classified correctly:
            [epsilons, examples] bool. An example that any other attack fools counts as fooled by
            the strong one.
        missed: number of cases (example and epsilon) in which another attack fools the model and
            the strong attack alone doesn't; None where the strong attack wasn't requested.
    """

    settings: Settings
    clean: float
    correct: dict[str, np.ndarray]
    missed: int | None

    @property
    def examples(self) -> int:
        """Number of examples attacked."""
        return self.correct["noise"].shape[1]

    def accuracy(self, attack: str) -> np.ndarray:
        """Accuracy at each epsilon, [epsilons] float64 in [0, 1]."""
        return self.correct[attack].mean(axis=1)


def measure(
    model: nn.Module,
    variables: Mapping[str, Any],
    data: Mapping[str, np.ndarray],
    settings: Settings,
    *,
    devices: list[jax.Device] | None = None,
    track: Track = lambda items, total, what: iter(items),
    programs: Programs | None = None,
) -> Curves:
    """Attacks every example of a split at every epsilon.

    Args:
        model: a classifier of `randmix.models`.
        variables: its parameters by role and ``batch_stats``.
        data: ``image`` [examples, H, W, C] uint8 and ``label`` [examples] int32.
        settings: what to measure.
        devices: devices to use; all by default.
        track: ``(items, how many, what is done) -> items``, to report progress.
        programs: compiled programs; runs that differ only in their seed and share this object
            compile once.
    """
    mesh = sharding.make_mesh(devices)
    once = (programs or Programs()).once
    model = model.clone(dtype=jnp.float32)
    examples = len(data["label"])
    weights: dict[str, Any] = sharding.replicate(dict(variables), mesh)
    split: loader.Data = sharding.replicate(dict(data), mesh)
    whole = eval_loop.round_up(min(settings.batch_size, examples), mesh)
    one_batch = {"model": model, "mesh": mesh, "batch_size": whole}
    jit_clean = partial(eval_loop.jit_eval_step, task=tasks.CLASSIFICATION, **one_batch)
    batches = arrays.eval_arrays(data, batch_size=whole, mesh=mesh)
    clean = eval_loop.evaluate_split(once(("clean", whole), jit_clean), weights, batches)[
        "accuracy"
    ]
    # All epsilons are processed at once, so each batch holds fewer images; on a CPU that is also
    # faster, by a factor of 1.4.
    fewer = eval_loop.round_up(max(1, settings.batch_size // len(settings.epsilons)), mesh)
    how = {"settings": settings, "model": model, "mesh": mesh}
    names = [name for name in settings.attacks if name != "strong"]

    def outcomes(program: Program, calls: Sequence[tuple[int, Any]], what: str) -> list[Any]:
        """The program's results on the host, for each batch index and epsilon (in pixel values)."""
        seed = np.uint32(settings.seed)
        return [
            jax.device_get(program(weights, split, index, epsilon, seed))
            for index, epsilon in track(calls, len(calls), what)
        ]

    jit_quick = partial(jit_quick_curves, batch_size=fewer, **how)
    quick = once(("quick", fewer, repr(settings)), jit_quick)
    epsilons = np.asarray(settings.epsilons, np.float32) / 255
    calls = [(index, epsilons) for index in range(-(-examples // fewer))]
    parts = outcomes(quick, calls, ", ".join(names))
    correct: dict[str, np.ndarray] = {
        name: np.concatenate([part[name] for part in parts], axis=1)[:, :examples] for name in names
    }
    missed = None
    if "strong" in settings.attacks:
        jit = partial(jit_strong, batch_size=whole, **how)
        strong = once(("strong", whole, repr(settings)), jit)
        batches = range(-(-examples // whole))
        # One epsilon after another, not all at once: where epsilon is large, the search soon stops.
        calls = [(i, np.float32(epsilon / 255)) for epsilon in settings.epsilons for i in batches]
        parts = outcomes(strong, calls, "strong")
        alone = np.stack(parts).reshape(len(settings.epsilons), -1)[:, :examples]
        by_others = np.logical_and.reduce(list(correct.values()))
        missed = int((alone & ~by_others).sum())
        correct["strong"] = alone & by_others
    return Curves(settings, clean, {name: correct[name] for name in settings.attacks}, missed)


def jit_quick_curves(
    *, model: nn.Module, settings: Settings, mesh: jax.sharding.Mesh, batch_size: int
) -> Program:
    """One program for all epsilons and all attacks but the strong one, compiled on first use.

    A batch of n images costs a forward and backward pass at the clean images, whose gradient serves
    FGSM and PGD-2 at every epsilon; per epsilon, a forward and backward pass at the FGSM samples,
    which scores FGSM and yields PGD-2's second gradient; and per epsilon, one forward pass for
    PGD-2's samples and one for the noise's. PGD, if requested, adds its own steps.

    Returns:
        ``(variables, data, index, epsilons, seed) -> {attack: [epsilons, batch_size] bool}``:
        whether the examples of batch ``index`` are still classified correctly; epsilons in pixel
        values (in [0, 1]).
    """

    def program(
        variables: Any, data: loader.Data, index: Any, epsilons: Any, seed: Any
    ) -> dict[str, jax.Array]:
        images, labels, keys = _batch(data, index, seed, batch_size, mesh)
        classifier = _classifier(model, variables)

        def correct(epsilon: jax.Array) -> dict[str, jax.Array]:
            logits = _quick_logits(classifier, images, labels, epsilon, keys, settings)
            return {name: attacks.is_correct(values, labels) for name, values in logits.items()}

        return jax.vmap(correct)(epsilons)

    return jax.jit(program, out_shardings=sharding.replicated(mesh))


def _quick_logits(
    classifier: attacks.Classifier,
    images: jax.Array,
    labels: jax.Array,
    epsilon: jax.Array,
    keys: jax.Array,
    settings: Settings,
) -> dict[str, jax.Array]:
    # Where fewer attacks are requested, the compiler drops the steps that none of them needs.
    _, one, two = attacks.ascent(classifier, images, labels, epsilon, steps=2, norm=settings.norm)
    logits = {"fgsm": one.logits, "pgd2": two.logits}
    for name, options in (("noise", {}), ("pgd", settings.pgd)):
        if name in settings.attacks:
            attack = attacks.ATTACKS[name]
            attacked = attack(
                classifier, images, labels, epsilon, keys, norm=settings.norm, **options
            )
            logits[name] = classifier(attacked)
    return {name: logits[name] for name in settings.attacks if name != "strong"}


def jit_strong(
    *, model: nn.Module, settings: Settings, mesh: jax.sharding.Mesh, batch_size: int
) -> Program:
    """The strong attack at one epsilon, compiled on first use.

    Returns:
        ``(variables, data, index, epsilon, seed) -> [batch_size] bool``, as ``jit_quick_curves``.
    """

    def program(
        variables: Any, data: loader.Data, index: Any, epsilon: Any, seed: Any
    ) -> jax.Array:
        images, labels, keys = _batch(data, index, seed, batch_size, mesh)
        classifier = _classifier(model, variables)
        attacked = attacks.strong(
            classifier, images, labels, epsilon, keys, norm=settings.norm, **settings.strong
        )
        return attacks.is_correct(classifier(attacked), labels)

    return jax.jit(program, out_shardings=sharding.replicated(mesh))


def _classifier(model: nn.Module, variables: Any) -> attacks.Classifier:
    # Linen's apply returns a tuple only with `mutable`, which its return type doesn't say.
    return partial(model.apply, variables, train=False)  # pyright: ignore[reportReturnType]


def _batch(
    data: loader.Data, index: jax.Array, seed: jax.Array, batch_size: int, mesh: jax.sharding.Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, labels and one key per example, from the seed and its position in the split."""
    batch = loader.eval_batch(data, index, batch_size=batch_size)
    positions = index * batch_size + jnp.arange(batch_size)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(positions)
    return jax.lax.with_sharding_constraint(
        (batch["image"], batch["label"], keys), sharding.split_batch(mesh)
    )
