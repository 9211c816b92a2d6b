"""Accuracy under attack: curves over epsilon for an entire split.

FGSM, PGD-2 and PGD attack every example at every epsilon, the others the first ones, and the curves
record whether each example is still classified correctly. At epsilon 0 nothing is attacked: those
entries are the clean ones. The arithmetic is float32 whatever the model was trained in: bfloat16
would round small perturbations away and hide gradients.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from randmix import attacks
from randmix.data import arrays, loader
from randmix.models import Model
from randmix.runtime import sharding
from randmix.training import evaluation, tasks
from randmix.training.compiled import Programs

Track = Callable[[Iterable[Any], int, str], Iterator[Any]]
Program = Callable[..., Any]


# One program attacks at all epsilons, which share the gradient at the clean images.
_TOGETHER = ("fgsm", "pgd2")
# These attack the first ``strong_examples`` only: a search for its cost, the noise as its control.
PARTIAL = ("noise", "targeted", "square", "strong")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        attacks: keys of ``attacks.ATTACKS``.
        epsilons: radii in 1/255, ascending.
        norm: "linf" or "l2"; the attack "square" allows "linf" only.
        seed: seed of the noise and the random starts; an example's draws depend only on the seed
            and the example's position.
        batch_size: number of images that the devices process at once.
        strong_examples: the number of examples, from the start of the split, for the attacks
            "noise", "targeted", "square" and "strong"; None for all. The others attack all.
        pgd, targeted, square, strong: arguments of these attacks.
    """

    attacks: tuple[str, ...]
    epsilons: tuple[float, ...]
    norm: str = "linf"
    seed: int = 0
    batch_size: int = 128
    strong_examples: int | None = None
    pgd: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"steps": 10, "step_size": 0.25}
    )
    targeted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    square: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strong: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def examples(self, attack: str, total: int) -> int:
        """The number of examples that an attack is measured on, of ``total``."""
        if attack not in PARTIAL or self.strong_examples is None:
            return total
        return min(self.strong_examples, total)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Measured accuracies. An attack's examples are the first ones of the split.

    Attributes:
        settings: what was measured.
        clean: accuracy in [0, 1] of all examples without an attack, from the ordinary evaluation.
        clean_correct: whether each example is classified correctly without an attack, from the
            attacks' program: [examples] bool.
        correct: for each attack, whether each of its examples is still classified correctly:
            [epsilons, its examples] bool. An example that any other attack fools counts as fooled
            by the strong one.
        strong_alone: the strong attack without the others' successes, likewise; None where it
            wasn't requested.
    """

    settings: Settings
    clean: float
    clean_correct: np.ndarray
    correct: dict[str, np.ndarray]
    strong_alone: np.ndarray | None

    @property
    def examples(self) -> int:
        """Number of examples in all."""
        return len(self.clean_correct)

    def accuracy(self, attack: str) -> np.ndarray:
        """Accuracy of the attack's examples at each epsilon, [epsilons] float64 in [0, 1]."""
        return self.correct[attack].mean(axis=1)


def measure(
    model: Model,
    variables: Mapping[str, Any],
    data: Mapping[str, np.ndarray],
    settings: Settings,
    *,
    devices: list[jax.Device] | None = None,
    track: Track = lambda items, total, what: iter(items),
    programs: Programs | None = None,
) -> Curves:
    """Attacks the examples of a split at every epsilon.

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
    weights: dict[str, Any] = sharding.replicate(dict(variables), mesh)
    split: loader.Data = sharding.replicate(dict(data), mesh)
    model = model.clone(dtype=jnp.float32)
    work = _Work(model, weights, split, settings, mesh, track, programs or Programs())
    clean = work.evaluate(data)
    clean_correct, correct = work.attack_together()
    correct |= {name: work.attack_alone(name) for name in settings.attacks if name not in _TOGETHER}
    correct = {
        name: _with_clean_row(correct[name], clean_correct, settings.epsilons)
        for name in settings.attacks
    }
    alone = correct.get("strong")
    if alone is not None:
        correct["strong"] = np.logical_and.reduce(
            [rows[:, : alone.shape[1]] for rows in correct.values()]
        )
    return Curves(settings, clean, clean_correct, correct, alone)


def _with_clean_row(
    attacked: np.ndarray, clean: np.ndarray, epsilons: Sequence[float]
) -> np.ndarray:
    """Puts the clean row before those of the positive epsilons, if 0 is among the epsilons."""
    clean = np.broadcast_to(clean[: attacked.shape[1]], (epsilons.count(0), attacked.shape[1]))
    return np.concatenate([clean, attacked])


@dataclasses.dataclass(frozen=True)
class _Work:
    """What the parts of a measurement share; see ``measure``."""

    model: Model
    weights: dict[str, Any]
    split: loader.Data
    settings: Settings
    mesh: jax.sharding.Mesh
    track: Track
    programs: Programs

    @property
    def total(self) -> int:
        """Number of examples in the split."""
        return len(self.split["label"])

    @property
    def epsilons(self) -> np.ndarray:
        """The positive epsilons, in pixel values."""
        positive = [epsilon for epsilon in self.settings.epsilons if epsilon > 0]
        return np.asarray(positive, np.float32) / np.float32(255)

    def evaluate(self, data: Mapping[str, np.ndarray]) -> float:
        """The clean accuracy from the ordinary evaluation."""
        size = self._batch_size(self.total)
        jit = partial(
            evaluation.jit_eval_step,
            model=self.model,
            task=tasks.CLASSIFICATION,
            mesh=self.mesh,
            batch_size=size,
        )
        step = self.programs.once(("clean", size), jit)
        batches = arrays.eval_arrays(data, batch_size=size, mesh=self.mesh)
        return evaluation.evaluate_split(step, self.weights, batches)["accuracy"]

    def attack_together(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Clean [examples] bool, and FGSM and PGD-2 by name, [positive epsilons, examples] bool."""
        epsilons = self.epsilons
        # All epsilons are processed at once, so each batch holds fewer images; on a CPU that is
        # also faster, by a factor of 1.4.
        size = self._batch_size(self.total, at_once=max(1, len(epsilons)))
        program = self._program("together", size, jit_together)
        names = [name for name in self.settings.attacks if name in _TOGETHER]
        calls = [(index, epsilons) for index in range(-(-self.total // size))]
        parts = self._outcomes(program, calls, ", ".join(names) or "clean")
        whole = {
            name: np.concatenate([part[name] for part in parts], axis=-1)[..., : self.total]
            for name in ("clean", *names)
        }
        return whole.pop("clean"), whole

    def attack_alone(self, name: str) -> np.ndarray:
        """One attack on its examples: [positive epsilons, examples] bool."""
        examples, epsilons = self.settings.examples(name, self.total), self.epsilons
        size = self._batch_size(examples)
        program = self._program(name, size, partial(jit_alone, name))
        batches = range(-(-examples // size))
        # One epsilon after another, not all at once: where epsilon is large, a search soon stops.
        calls = [(index, epsilon) for epsilon in epsilons for index in batches]
        parts = self._outcomes(program, calls, name)
        return np.reshape(parts, (len(epsilons), len(batches) * size))[:, :examples].astype(bool)

    def _batch_size(self, examples: int, *, at_once: int = 1) -> int:
        most = max(1, self.settings.batch_size // at_once)
        return evaluation.round_up(min(most, examples), self.mesh)

    def _program(self, name: str, size: int, jit: Callable[..., Program]) -> Program:
        settings, model, mesh = self.settings, self.model, self.mesh
        make = partial(jit, model=model, settings=settings, mesh=mesh, batch_size=size)
        return self.programs.once((name, size, repr(settings)), make)

    def _outcomes(self, program: Program, calls: Sequence[tuple[int, Any]], what: str) -> list[Any]:
        """The program's results on the host, for each batch index and epsilon (in pixel values)."""
        seed, results = np.uint32(self.settings.seed), []
        for index, epsilon in self.track(calls, len(calls), what):
            results.append(program(self.weights, self.split, index, epsilon, seed))
            jax.block_until_ready(results[-2:-1])  # the host stays one batch ahead
        return jax.device_get(results)


def jit_together(
    *, model: Model, settings: Settings, mesh: jax.sharding.Mesh, batch_size: int
) -> Program:
    """One program for the clean images, FGSM and PGD-2 at all epsilons, compiled on first use.

    A batch of n images costs a forward and backward pass at the clean images, whose gradient serves
    both attacks at every epsilon; and per epsilon a forward and backward pass at the FGSM samples,
    which scores FGSM and yields PGD-2's second gradient, and a forward pass at PGD-2's samples.

    Returns:
        ``(variables, data, index, epsilons, seed) -> {"clean": [batch_size] bool, attack:
        [epsilons, batch_size] bool}``: whether the examples of batch ``index`` are classified
        correctly; epsilons positive, in pixel values (in [0, 1]).
    """

    def program(
        variables: Any, data: loader.Data, index: Any, epsilons: Any, seed: Any
    ) -> dict[str, jax.Array]:
        images, labels, _ = _batch(data, index, seed, batch_size, mesh)

        def correct(epsilon: jax.Array) -> dict[str, jax.Array]:
            # Where fewer attacks are requested, the compiler drops the steps that none needs.
            points = attacks.ascent(
                _classifier(model, variables), images, labels, epsilon, steps=2, norm=settings.norm
            )
            right = [attacks.is_correct(point.logits, labels) for point in points]
            return dict(zip(("clean", *_TOGETHER), right, strict=True))

        attacked = jax.vmap(correct, out_axes={"clean": None, "fgsm": 0, "pgd2": 0})(epsilons)
        return {name: attacked[name] for name in ("clean", *settings.attacks) if name in attacked}

    return jax.jit(program, out_shardings=sharding.replicated(mesh))


def jit_alone(
    name: str, *, model: Model, settings: Settings, mesh: jax.sharding.Mesh, batch_size: int
) -> Program:
    """One attack at one epsilon, compiled on first use.

    Returns:
        ``(variables, data, index, epsilon, seed) -> [batch_size] bool``, as ``jit_together``.
    """
    options = {} if name == "noise" else getattr(settings, name)
    attack = partial(attacks.ATTACKS[name], norm=settings.norm, **options)

    def program(
        variables: Any, data: loader.Data, index: Any, epsilon: Any, seed: Any
    ) -> jax.Array:
        images, labels, keys = _batch(data, index, seed, batch_size, mesh)
        classifier = _classifier(model, variables)
        attacked = attack(classifier, images, labels, epsilon, keys)
        return attacks.is_correct(classifier(attacked), labels)

    return jax.jit(program, out_shardings=sharding.replicated(mesh))


def _classifier(model: Model, variables: Any) -> attacks.Classifier:
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
