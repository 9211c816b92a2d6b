"""The runs of each experiment, from the settings of its models."""

from collections.abc import Sequence

from randmix.reproduce.presets.preset import LONGER, MODES, TRANSPLANT, Settings, product

# Saves only at the end, and writes no TensorBoard events.
SHORT: Settings = {"checkpoint_every": 10**6, "tensorboard": False}
# E14's banks by name.
BANKS = ("random", "same", "dct", "delta", "gaussian", "gaussian8")


def each(steps: int) -> Settings:
    """Logs and evaluates every so many steps, an epoch of most presets: the learning curves."""
    return {"log_every": steps, "eval_every": steps}


def with_checkpoints(base: Settings) -> Settings:
    """Keeps the checkpoints of all evaluations, to compare models of one clean accuracy (4e)."""
    return {**base, "checkpoint_every": base["eval_every"], "keep_checkpoints": 100}


def fractions(base: Settings, shares: Sequence[float]) -> list[Settings]:
    """E12's runs: channel mixing, norms, head and a share of the spatial filters are learned.

    Shares 0 and 1 are Chans and Full, so other experiments share those runs.
    """
    runs = []
    for share in shares:
        if share in (0, 1):
            runs.append({**base, "mode": "full" if share else "chans"})
        else:
            learned = f"fraction(role('spatial'), {share})"
            groups = (("train", "~role('spatial')", {}), ("filters", learned, {}))
            runs.append({**base, "groups": groups})
    return runs


def smoothings(base: Settings, indices: Sequence[float]) -> list[Settings]:
    """E7's runs: Chans with random (index 0) and with smoothed filters, and a smoothed stem.

    They hold out training images, which choose the index that costs no accuracy.
    """
    chans = {**base, "mode": "chans", "model.smooth_stem": True, "data.validation": 0.1}
    return product(chans, {"model.smoothing_index": [float(index) for index in indices]})


def banks_of_filters(base: Settings) -> list[Settings]:
    """Full, and Chans with each bank: Different ("random"), Same, Box and Identity."""
    names = ("random", "same", "box", "identity")
    return [{**base, "mode": "full"}, *product({**base, "mode": "chans"}, {"model.filters": names})]


def kinds_of_filters(
    resnet: Settings,
    convmixer: Settings,
    *,
    multipliers: Sequence[int] = (3, 1),
    indices: Sequence[float],
) -> list[Settings]:
    """E3's runs: banks in a ResNet with 9 filters per channel and fewer, in a ConvMixer, by rank.

    Args:
        resnet: the ResNet's settings, whose multiplier is 9.
        convmixer: the ConvMixer's.
        multipliers: further numbers of filters per channel.
        indices: see ``filters_by_rank``.
    """
    runs = banks_of_filters(resnet)
    for multiplier in multipliers:
        runs += banks_of_filters({**resnet, "model.multiplier": multiplier})[1:]
    return [*runs, *banks_of_filters(convmixer)[1:], *filters_by_rank(resnet, indices)]


def filters_by_rank(base: Settings, indices: Sequence[float]) -> list[Settings]:
    """E3's runs for claim 2': Chans with impulses of several ranks, and of several coverages.

    Impulses have a flat spectrum at every rank, so their coverages are equal; smoothing lowers the
    coverage of those of the highest rank.

    Args:
        base: the settings of a ResNet with nine filters per channel.
        indices: smoothing indices above 0 of the banks of the highest rank.
    """
    flat = {**base, "mode": "chans", "model.filters": "delta"}
    highest = {**flat, "model.filter_rank": 9}
    return [
        *product(flat, {"model.filter_rank": (9, 3, 1)}),
        *product(highest, {"model.smoothing_index": [float(index) for index in indices]}),
    ]


def convergence(*bases: Settings) -> list[Settings]:
    """The runs of the gate: all modes, with held-out training images, and for twice as long."""
    over = {"mode": MODES, LONGER: (1, 2)}
    return [run for base in bases for run in product({**base, "data.validation": 0.1}, over)]


def defended(runs: Sequence[Settings], epsilon: float) -> list[Settings]:
    """The runs, trained on FGSM samples; epsilon in 1/255."""
    return [{**run, "defense.epsilon": float(epsilon)} for run in runs]


def unshuffling(
    base: Settings,
    *,
    widths: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    space: tuple[int, int],
) -> list[Settings]:
    """E10's runs: Full and Chans over width for each (depth, kernel size), and Space for one."""
    runs = []
    for size in sizes:
        sized = {**base, "model.depth": size[0], "model.kernel_size": size[1]}
        modes = MODES[: 3 if size == space else 2]
        runs += product(sized, {"mode": modes, "model.width": widths})
    return runs


def lattice(*bases: Settings) -> list[Settings]:
    """E13's runs: each model learns spatial mixing, channel mixing, both or neither.

    Norms and head are always learned. A model joins by its settings.
    """
    return [run for base in bases for run in product(base, {"mode": MODES})]


def frozen_filters(base: Settings, banks: Sequence[str]) -> list[Settings]:
    """E14's runs: Chans with each bank, and with the filters that Full learned; Full and Floor.

    Args:
        base: a ConvMixer.
        banks: banks by name; see ``models.filters``.
    """
    full, chans = {**base, "mode": "full"}, {**base, "mode": "chans"}
    return [
        full,
        {**base, "mode": "floor"},
        *product(chans, {"model.filters": banks}),
        {**chans, TRANSPLANT: full},
    ]


def law(*experiments: Sequence[Settings]) -> list[Settings]:
    """E15's runs: those of Full and Chans in the other experiments."""
    return [run for runs in experiments for run in runs if run["mode"] in MODES[:2]]
