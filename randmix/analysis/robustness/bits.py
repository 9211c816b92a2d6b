"""The outcome for every image, attack and epsilon, in a compressed .npz file."""

import numpy as np
from etils import epath

from randmix.analysis.robustness.curves import Curves
from randmix.errors import UserError
from randmix.experiments import measured

# Arrays that every file holds; each further one is an attack's.
_ALWAYS = ("epsilons", "clean")


def write(file: epath.Path, curves: Curves) -> None:
    """Writes the arrays that ``load`` returns; a file is replaced as a whole or not at all."""
    arrays = {
        "epsilons": np.asarray(curves.settings.epsilons, np.float64),
        "clean": curves.clean_correct,
        **curves.correct,
    }
    if curves.strong_alone is not None:
        arrays["strong_alone"] = curves.strong_alone
    measured.write_arrays(file, arrays)


def load(file: epath.PathLike) -> dict[str, np.ndarray]:
    """Loads ``attacks.npz``: whether each image is still classified correctly.

    Returns:
        "epsilons": [epsilons] float64, in 1/255, ascending.
        "clean": [images] bool, without an attack; image i is the split's i-th.
        attack, such as "fgsm" or "strong": [epsilons, its images] bool. An attack that was
            measured on fewer images has the split's first ones; ``load(file)["fgsm"][:, :n]``
            compares it with one on n images. "strong" counts an image as fooled that any attack
            of the file fools.
        "strong_alone": as "strong", without the other attacks' successes; absent where "strong" is.

    Raises:
        UserError: the file is missing or damaged.
    """
    arrays = measured.read_arrays(epath.Path(file), "measure the attacks again")
    if missing := [name for name in _ALWAYS if name not in arrays]:
        raise UserError(f"{file}: damaged: {missing[0]} is missing; measure the attacks again")
    return arrays
