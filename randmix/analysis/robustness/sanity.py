"""Sanity checks of accuracy under attack, each computed from the measured numbers.

After Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705, section 5. A failed
check means that the attack, the model's gradient or the code can't be trusted, not that the model
is robust.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from randmix.analysis.robustness.curves import Curves

NEAR_ZERO = 0.01
# In 1/255: by that much in every pixel, any image can become the same grey one.
_LARGE = 128
# The share of examples that a gradient search may miss.
_MISSES = 0.01
# The gradient-based attacks, by number of steps.
_BY_STEPS = ("fgsm", "pgd2", "pgd", "strong")
# Their steps are as long as the radius and overshoot where it is large: accuracy may then rise,
# which says nothing about the gradient. They are checked up to the radius that halves accuracy.
_COARSE = ("fgsm", "pgd2")


class Check(NamedTuple):
    """The verdict of one check.

    Attributes:
        claim: what must hold.
        passed: whether it holds; None where the numbers can't decide.
        detail: the numbers, or why they can't decide.
    """

    claim: str
    passed: bool | None
    detail: str

    def __str__(self) -> str:
        """Formats the verdict as one line."""
        verdict = {True: "pass", False: "FAIL", None: "open"}[self.passed]
        return f"{verdict}  {self.claim}: {self.detail}"


def checks(curves: Curves) -> list[Check]:
    """All checks of measured curves, in the order in which a reader would ask.

    Attacks with different numbers of examples are compared on those that both have.
    """
    return [
        _clean_at_zero(curves),
        _falls(curves),
        _ends_near_zero(curves),
        _more_steps_never_help(curves),
        _noise_is_weaker(curves),
        _strong_is_strongest(curves),
        _finds_nothing_new(curves, "square", "the black-box attack"),
        _finds_nothing_new(curves, "targeted", "the targeted attack"),
    ]


def _clean_at_zero(curves: Curves) -> Check:
    claim = "epsilon 0 reproduces the clean accuracy"
    # In counts: the evaluation sums in float32.
    got, clean = int(curves.clean_correct.sum()), round(curves.clean * curves.examples)
    # The two programs have other batch sizes: rounding may flip an example near a tie.
    close = abs(got - clean) <= curves.examples / 1000
    detail = f"the attacks' program {got / curves.examples:.4f}, clean {curves.clean:.4f}"
    return Check(claim, close, detail)


def _falls(curves: Curves) -> Check:
    claim = "accuracy falls as epsilon grows"
    epsilons = curves.settings.epsilons
    if len(epsilons) < 2:
        return Check(claim, None, "there is only one epsilon")
    rises = [
        f"{name} rises from {before.mean():.4f} to {after.mean():.4f} at {epsilon:g}"
        for name in _gradient_attacks(curves)
        for epsilon, (before, after) in zip(
            epsilons[1:], pairwise(curves.correct[name]), strict=True
        )
        if epsilon <= _checked_up_to(curves, name) and _helps_beyond_noise(before, after)
    ]
    return Check(claim, not rises, "; ".join(rises) or "for every attack, beyond noise")


def _ends_near_zero(curves: Curves) -> Check:
    claim = "a large epsilon brings accuracy close to 0"
    if "strong" not in curves.settings.attacks:
        return Check(claim, None, "the strong attack wasn't requested")
    left, largest = curves.accuracy("strong")[-1], curves.settings.epsilons[-1]
    if left > NEAR_ZERO and (curves.settings.norm != "linf" or largest < _LARGE):
        more = f" of {_LARGE} or more" if curves.settings.norm == "linf" else " larger than that"
        return Check(claim, None, f"{left:.4f} at {largest:g}, strong; add an epsilon{more}")
    return Check(claim, bool(left <= NEAR_ZERO), f"{left:.4f} at {largest:g}, strong")


def _more_steps_never_help(curves: Curves) -> Check:
    claim = "more steps never help the defender"
    names = _gradient_attacks(curves)
    if len(names) < 2:
        return Check(claim, None, "there is only one gradient-based attack")
    helped = [
        f"{more} {after.mean():.4f} over {fewer} {before.mean():.4f} at {epsilon:g}"
        for fewer, more in pairwise(names)
        for epsilon, before, after in zip(
            curves.settings.epsilons, *_in_common(curves, fewer, more), strict=True
        )
        if epsilon <= _checked_up_to(curves, more) and _helps_beyond_noise(before, after)
    ]
    return Check(claim, not helped, "; ".join(helped) or f"{', '.join(names)}, beyond noise")


def _noise_is_weaker(curves: Curves) -> Check:
    claim = "noise of the same size is far weaker than the gradient attack"
    name = next(iter(_gradient_attacks(curves)), None)
    if name is None:
        return Check(claim, None, "no gradient-based attack was requested")
    if "noise" not in curves.correct:
        return Check(claim, None, "noise wasn't requested")
    attacked, noisy = _in_common(curves, name, "noise")
    clean = curves.clean_correct[: noisy.shape[1]].mean()
    cost, noise = clean - attacked.mean(axis=1), clean - noisy.mean(axis=1)
    halved = np.flatnonzero(cost >= clean / 2)
    if not halved.size:
        return Check(
            claim, None, f"{name} never costs half of the clean accuracy; add a larger epsilon"
        )
    row = halved[0]
    where = f"at {curves.settings.epsilons[row]:g}, the first epsilon that costs half"
    detail = f"noise costs {noise[row]:.4f}, {name} {cost[row]:.4f} {where}"
    return Check(claim, bool(noise[row] <= cost[row] / 2), detail)


def _strong_is_strongest(curves: Curves) -> Check:
    claim = "the strong attack fools every example that a weaker attack fools"
    if curves.strong_alone is None:
        return Check(claim, None, "the strong attack wasn't requested")
    weaker = [name for name in curves.correct if name in ("noise", *_BY_STEPS[:-1])]
    left = np.logical_and.reduce(_in_common(curves, "strong", *weaker)[1:])
    missed = int((curves.strong_alone & ~left).sum())
    examples = "1 example was" if missed == 1 else f"{missed} examples were"
    return Check(claim, missed == 0, f"{examples} missed over all epsilons, counted as fooled")


def _finds_nothing_new(curves: Curves, name: str, title: str) -> Check:
    """A search that a hidden gradient doesn't stop must not beat those that follow the gradient."""
    claim = f"{title} fools no example that the gradient attacks don't"
    if curves.strong_alone is None or name not in curves.correct:
        absent = "strong" if curves.strong_alone is None else name
        return Check(claim, None, f"the attack {absent} wasn't requested")
    found = curves.correct[name]
    weaker = [other for other in _gradient_attacks(curves) if other != "strong"]
    left = np.logical_and.reduce([curves.strong_alone, *_in_common(curves, name, *weaker)[1:]])
    new = (left & ~found).sum(axis=1)
    row = new.argmax()
    where = f"{new[row]} of {found.shape[1]} at {curves.settings.epsilons[row]:g}"
    # An honest gradient search misses a few: fail where their share is above 1 % by two sigma.
    masked = new[row] - 2 * np.sqrt(new[row]) > _MISSES * found.shape[1]
    verdict = "the gradients are masked" if masked else "at most, within chance"
    return Check(claim, not masked, f"{where}, {verdict}")


def _checked_up_to(curves: Curves, name: str) -> float:
    """The largest epsilon at which an attack is checked."""
    halved = np.flatnonzero(curves.accuracy(name) <= curves.clean_correct.mean() / 2)
    return curves.settings.epsilons[halved[0]] if name in _COARSE and halved.size else np.inf


def _gradient_attacks(curves: Curves) -> list[str]:
    return [name for name in _BY_STEPS if name in curves.correct]


def _in_common(curves: Curves, *names: str) -> list[np.ndarray]:
    """What each attack left correct of the examples that all of them had: [epsilons, examples]."""
    fewest = min(curves.correct[name].shape[1] for name in names)
    return [curves.correct[name][:, :fewest] for name in names]


def _helps_beyond_noise(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether more examples were regained than chance explains: two sigma in McNemar's test.

    >>> before, after = np.arange(100) < 50, np.arange(100) < 60
    >>> _helps_beyond_noise(before, after)
    True
    """
    gained, lost = (after & ~before).sum(), (before & ~after).sum()
    return bool(gained - lost > 2 * np.sqrt(gained + lost))
