"""Results and verdicts in words, built from their numbers."""

import math

from randmix.reproduce import gates, verdicts
from randmix.reproduce.claims import EXACTLY, WITHIN, Test
from randmix.reproduce.verdicts import Judgement, Result


def sentence(judgement: Judgement) -> str:
    """What was measured, what was claimed, and what follows, in one sentence.

    Of several deciding effects the least favourable is named. The share that a mode recovers, where
    it was computed, stands for the effect of which it is another reading.
    """
    if judgement.verdict == verdicts.NOT_DECIDED and judgement.reason:
        return _capitalized(f"{judgement.reason}.")
    deciding = weakest(judgement)
    failures = _failures(judgement)
    if deciding is None:
        return _capitalized(f"{failures or judgement.reason or 'nothing to compare yet'}.")
    shares = (r for r in judgement.results if r.unit == "%" and not math.isnan(r.interval.mean))
    shown = next(shares, deciding)
    count = len(judgement.deciding)
    first = f"the least favourable of {count} effects is " if count > 1 else ""
    follows = [f"but {failures}"] if failures else _consequences(judgement, deciding)
    return _capitalized("; ".join([f"{first}{shown.title}: {_value(shown)}", *follows]) + ".")


def weakest(judgement: Judgement) -> Result | None:
    """The deciding effect that supports the claim least; None without any that is known."""
    known = [r for r in judgement.deciding if not math.isnan(r.interval.mean)]
    return max(known, key=lambda result: result.p_supported - result.p_contradicted, default=None)


def test_of(judgement: Judgement, result: Result) -> Test:
    """The test of which a result is the outcome."""
    return next(test for test in judgement.claim.tests if test.effect.words == result.words)


def claimed(result: Result) -> str:
    """The claimed values of an effect."""
    if result.side == EXACTLY:
        return f"{result.side} {result.threshold:g}"
    gap = "" if result.side == WITHIN else " "
    return f"{result.side}{gap}{two_decimals(result.threshold)}"


def interval_in_words(result: Result) -> str:
    """The interval of a result and its number of seeds, or a note that there is none."""
    if result.side == EXACTLY:
        return "exact"
    if result.interval.n < 2 or math.isnan(result.interval.mean):
        return f"no interval, n = {result.interval.n}"
    low, high = two_decimals(result.interval.low), two_decimals(result.interval.high)
    return f"[{low}, {high}], n = {result.interval.n}"


def two_decimals(value: float) -> str:
    r"""Formats a number with two decimals and a true minus sign; "n/a" for NaN.

    >>> two_decimals(-1.234) == "\N{MINUS SIGN}1.23"
    True
    """
    if math.isnan(value):
        return "n/a"
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _value(result: Result) -> str:
    if result.side == EXACTLY:
        return f"{result.interval.mean:g} (claimed: {claimed(result)})"
    mean = f"{two_decimals(result.interval.mean)} {result.unit}".strip()
    return f"{mean}, {interval_in_words(result)} (claimed: {claimed(result)})"


def obstacles(judgement: Judgement) -> list[str]:
    """What keeps a claim from being assessed, in few words each."""
    failed = [gate for gate in judgement.gates if not gate.passed]
    found = [
        "a gate was not measured" if gate.detail == gates.NOT_MEASURED else gate.failure
        for gate in failed
    ]
    if not failed and verdicts.NOT_ASSESSABLE in judgement.verdict:
        found.append(judgement.reason.partition(":")[0])
    return list(dict.fromkeys(filter(None, found)))


def _failures(judgement: Judgement) -> str:
    """The gates that failed, in few words, each with what was measured; "" if none did."""
    found: dict[str, list[str]] = {}
    for gate in judgement.gates:
        if not gate.passed and gate.detail == gates.NOT_MEASURED:
            found.setdefault("a gate was not measured", []).append(gate.words)
        elif not gate.passed:
            detail = f"{gate.part}: {gate.detail}" if gate.part else gate.detail
            found.setdefault(gate.failure, []).append(detail)
    return " and ".join(
        f"{failure} ({'; '.join(dict.fromkeys(details))})" for failure, details in found.items()
    )


def _consequences(judgement: Judgement, deciding: Result) -> list[str]:
    """What follows from the numbers, where it isn't simply that the claim holds."""
    found = [judgement.reason] if judgement.reason else []
    equal = test_of(judgement, deciding).equal
    if verdicts.EQUAL in judgement.verdict and equal and deciding.equal:
        low, high = two_decimals(deciding.equal.low), two_decimals(deciding.equal.high)
        of = f" of {equal.words}" if equal.words != deciding.words else ""
        margin = f"\N{PLUS-MINUS SIGN}{deciding.margin:.2g} {equal.unit}".strip()
        found.append(f"the 90 % interval{of}, [{low}, {high}], lies within {margin}")
    if judgement.verdict == verdicts.NOT_DECIDED:
        alone = min(deciding.p_supported, deciding.p_contradicted) <= verdicts.ONE_SIDED
        found.append(
            f"beyond the threshold alone, but not once corrected (p = {judgement.p:.2g})"
            if alone
            else "the threshold is not excluded"
        )
    return found


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
