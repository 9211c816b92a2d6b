"""The paper's claims as a table: effect, threshold, margin and gates, the same for every data set.

``effects`` computes what is compared, ``gates`` what must hold first, ``verdicts`` the words.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping

from randmix.experiments.plan import PlannedRun
from randmix.reproduce import gates
from randmix.reproduce.effects import (
    BANK_MARGIN,
    NEAR,
    RADIUS_MARGIN,
    WAY,
    Effect,
    above_mean_image,
    above_the_line,
    bank_coverage,
    bank_step,
    count,
    coverage_slope,
    decibels,
    error_ratio,
    gap_at,
    matched_octaves,
    octaves,
    points,
    psnr_slope,
    rank_step,
    recovered,
    recovered_share,
    smoothing_octaves,
)
from randmix.reproduce.gates import Gate

_DEFENDED = "defense.epsilon"
_SPLITS = {
    "model.name": "family of models",
    "model.multiplier": "number of filters per channel",
    "mode": "mode",
}
ABOVE, BELOW, WITHIN, EXACTLY = "above", "below", "within ±", "exactly"


@dataclasses.dataclass(frozen=True)
class Test:
    """A comparison of an effect with a threshold.

    Attributes:
        effect: what is compared.
        side: ``ABOVE`` or ``BELOW`` the threshold, ``WITHIN`` it on either side of 0, or
            ``EXACTLY`` it, for numbers without seeds.
        threshold: in the effect's unit.
        equal: the effect that is *practically equal* to 0 where it is within the margin.
        margin: that margin; 0 for none.
    """

    effect: Effect
    side: str
    threshold: float
    equal: Effect | None = None
    margin: float = 0.0

    @property
    def rule(self) -> str:
        """The test in words."""
        gap = "" if self.side == WITHIN else " "
        value = f"{self.side}{gap}{self.threshold:.4g}"
        return f"{self.effect.words} is {value} {self.effect.unit}".strip()

    @property
    def equality(self) -> str:
        """The zone of equivalence in words; empty for none."""
        if self.equal is None:
            return ""
        return f"{self.equal.words} is within ±{self.margin:.3g} {self.equal.unit}".strip()


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, of the paper or ours.

    Attributes:
        id: "1a", "1b" and so on.
        text: the claim in a sentence.
        source: the paper's figure and section.
        experiment: id of the experiment whose runs decide it.
        tests: the comparisons; those after the deciding ones are reported beside them.
        gates: what must hold before it is judged.
        model: the family of models, or None for all.
        primary: whether it belongs to the family of primary claims of its data set.
        deciding: number of tests, from the first, that must all hold.
        split: settings by whose values a secondary claim is judged, and gated, separately.
        among: settings that all runs which it compares have (True) or lack (False).
        modes: the modes of the runs that it compares; () for all.
    """

    id: str
    text: str
    source: str
    experiment: str
    tests: tuple[Test, ...]
    gates: tuple[Gate, ...] = ()
    model: str | None = None
    primary: bool = False
    deciding: int = 1
    split: tuple[str, ...] = ()
    among: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    modes: tuple[str, ...] = ()

    def compares(self, run: PlannedRun) -> bool:
        """Whether a run is one of those whose numbers the claim's effects compare."""
        return (
            self.model in (None, run.config.model.name)
            and self.experiment in run.experiments
            and (not self.modes or run.config.mode in self.modes)
            and all(bool(run.settings.get(name)) == has for name, has in self.among.items())
        )

    def needs(self, run: PlannedRun) -> bool:
        """Whether the claim, or one of its gates, compares a run."""
        gated = any(gate.experiment in run.experiments for gate in self.gates)
        return self.compares(run) or (gated and self.model in (None, run.config.model.name))

    @property
    def rule(self) -> str:
        """How the verdict is computed, in words."""
        tests = self.tests[: self.deciding]
        together = ", and " if self.primary else "; if "
        parts = [f"Supported if {together.join(test.rule for test in tests)}."]
        if len(tests) > 1 and self.primary:
            parts.append("Contradicted if one of these is on the other side.")
        elif len(tests) > 1:
            parts.append("Each of these has a verdict of its own.")
        if equal := [test.equality for test in tests if test.equal]:
            parts.append(f"Practically equal if {together.join(equal)}.")
        if self.split:
            parts.append(f"Judged for each {' and '.join(_SPLITS[name] for name in self.split)}.")
        if self.gates:
            parts.append(f"Not assessable unless {'; '.join(gate.words for gate in self.gates)}.")
        return " ".join(parts)


def _above(effect: Effect, margin: float) -> Test:
    return Test(effect, ABOVE, 0.0, effect, margin)


def _near(claim: str, text: str, source: str, experiment: str, model: str) -> Claim:
    effect = recovered("chans", NEAR)
    return Claim(
        claim,
        text,
        source,
        experiment,
        (
            Test(effect, ABOVE, 0.0, points("full", "chans"), 1.0),
            Test(recovered_share("chans"), ABOVE, 100 * NEAR),
        ),
        (
            gates.at_least(points("full", "floor"), WAY),
            gates.control_fails(),
            gates.converged(effect),
        ),
        model,
        primary=True,
    )


def _robust(
    claim: str, text: str, source: str, model: str, *, defended: bool, primary: bool
) -> Claim:
    attacks = ("fgsm", "pgd2", "strong")
    tests = tuple(_above(octaves(attack, defended=defended), RADIUS_MARGIN) for attack in attacks)
    checks = (gates.attack_checks(defended=defended),)
    among = {_DEFENDED: defended}
    return Claim(claim, text, source, "E6", tests, checks, model, primary, among=among)


# It stands for effects that the gate's runs, which have random filters, don't measure.
_FAMILY_CONVERGED = gates.converged(points("full", "chans"), None)
_UNSHUFFLES = (gates.reaches(), gates.at_least(above_mean_image(), 3))
_TABLE = (
    _near(
        "1a",
        "Chans comes near Full on the separable ResNet.",
        "Fig. 2, 4.1.2",
        "E2",
        "resnet",
    ),
    _near("1b", "Chans comes near Full on the ConvMixer.", "Fig. 5, 4.2.1", "E5", "convmixer"),
    Claim(
        "1c",
        "Space is far worse than Chans on the separable ResNet.",
        "Fig. 2, 4.1.2",
        "E2",
        (
            Test(
                error_ratio("space", "chans"),
                ABOVE,
                math.log(1.25),
                error_ratio("space", "chans"),
                math.log(1.05),
            ),
        ),
        (
            gates.at_least(points("full", "floor"), WAY),
            gates.converged(error_ratio("space", "chans"), math.log(1.25), math.log(1.05)),
        ),
        "resnet",
        primary=True,
    ),
    Claim(
        "2",
        "Different > Same > Box > Identity.",
        "Fig. 3, 4.1.3",
        "E3",
        tuple(
            _above(bank_step(*pair), BANK_MARGIN)
            for pair in (("random", "same"), ("same", "box"), ("box", "identity"))
        ),
        (_FAMILY_CONVERGED,),
        deciding=3,
        split=("model.name", "model.multiplier"),
        among={"model.filter_rank": False},
    ),
    Claim(
        "2'",
        "Rank, not coverage, orders frozen filters.",
        "ours",
        "E3",
        (
            _above(rank_step(9, 3), BANK_MARGIN),
            _above(rank_step(3, 1), BANK_MARGIN),
            Test(coverage_slope(), WITHIN, BANK_MARGIN),
        ),
        (gates.equal_coverage(9, 3, 1), _FAMILY_CONVERGED),
        "resnet",
        primary=True,
        deciding=3,
        among={"model.filter_rank": True},
    ),
    Claim(
        "3",
        "The gap between Chans and Full closes as width grows.",
        "Fig. 4, 4.1.4",
        "E4",
        (Test(gap_at(-1, "largest"), WITHIN, 0.5),),
        (gates.gap_at_first(),),
        split=("model.name",),
    ),
    _robust(
        "4a",
        "Chans ResNets are more robust than Full ones without any defence.",
        "Fig. 6, 4.3.2",
        "resnet",
        defended=False,
        primary=True,
    ),
    _robust(
        "4b",
        "Chans ResNets are also more robust after training on FGSM samples.",
        "Fig. 6, 4.3.2",
        "resnet",
        defended=True,
        primary=False,
    ),
    _robust(
        "4c",
        "Chans ConvMixers are more robust than Full ones without any defence.",
        "4.3.3, by Fig. 6",
        "convmixer",
        defended=False,
        primary=True,
    ),
    _robust(
        "4d",
        "Chans ConvMixers are also more robust after training on FGSM samples.",
        "as 4b; ours",
        "convmixer",
        defended=True,
        primary=False,
    ),
    Claim(
        "4e",
        "Chans models are more robust than Full ones of the same clean accuracy.",
        "ours",
        "E6",
        (_above(matched_octaves(), RADIUS_MARGIN),),
        (gates.attack_checks(defended=False),),
        split=("model.name",),
        among={_DEFENDED: False},
    ),
    Claim(
        "5",
        "Smoothing the frozen filters raises robustness at no cost in clean accuracy.",
        "Fig. 7, 4.3.3",
        "E7",
        (_above(smoothing_octaves(), RADIUS_MARGIN),),
        (gates.attack_checks(defended=False), gates.an_index_is_free()),
    ),
    Claim(
        "6a",
        "Un-shuffling: Chans comes near Full.",
        "Fig. 10, 11, 4.4",
        "E10",
        (Test(decibels("chans"), BELOW, 1.0, decibels("chans"), 0.5),),
        _UNSHUFFLES,
        primary=True,
        modes=("full", "chans"),
    ),
    Claim(
        "6b",
        "Un-shuffling: Space comes near Full.",
        "1 (Introduction)",
        "E10",
        (Test(decibels("space"), BELOW, 1.0, decibels("space"), 0.5),),
        _UNSHUFFLES,
        modes=("full", "space"),
    ),
    Claim(
        "6c",
        "Un-shuffling: PSNR grows with width, depth and kernel size.",
        "4.4, B",
        "E10",
        tuple(
            Test(psnr_slope(f"model.{size}"), ABOVE, 0.0)
            for size in ("width", "depth", "kernel_size")
        ),
        (gates.reaches(),),
        deciding=3,
        split=("mode",),
    ),
    Claim(
        "7",
        "More random filters cover more of the spectrum.",
        "Fig. 1, 3.1",
        "E1",
        (Test(bank_coverage(), ABOVE, 0.0),),
    ),
    Claim(
        "8",
        "Equations 1 to 3 give the parameter counts; that of Chans doesn't depend on k.",
        "Eq. 1-3, 3.4",
        "E11",
        (
            Test(
                count("differs_from_equations", "the number of counts off the closed forms"),
                EXACTLY,
                0,
            ),
            Test(
                count("depends_on_kernel_size", "the number of Chans counts that change with k"),
                EXACTLY,
                0,
            ),
        ),
        deciding=2,
    ),
    Claim(
        "9",
        "The first learned filters gain the most.",
        "ours",
        "E12",
        (Test(above_the_line(), ABOVE, 0.0),),
        (_FAMILY_CONVERGED,),
    ),
)
CLAIMS = {claim.id: claim for claim in _TABLE}


def of(experiment: str) -> list[Claim]:
    """The claims that an experiment decides."""
    return [claim for claim in CLAIMS.values() if claim.experiment == experiment]


def fingerprint() -> str:
    """Eight hex digits that identify the table: reports with equal ones judged by equal rules."""
    text = "\n".join(
        f"{claim.id} {claim.primary} {claim.experiment} {claim.model} {claim.rule} "
        f"{[test.rule for test in claim.tests]}"
        for claim in CLAIMS.values()
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]
