"""Relative errors between trees of tensors.

An error is a relative norm, ||a - b|| / ||b||, per tensor. The denominator has a floor, a hundredth
of the mean norm of the tree's tensors: a gradient that the next norm cancels is nothing but
rounding, in PyTorch as here.
"""

import jax
import numpy as np
import optax

from randmix import masks


def errors(got, expected):
    """The relative error of every tensor, by path."""
    assert masks.paths(got) == masks.paths(expected)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    assert all(a.shape == b.shape for a, b in pairs)
    floor = 0.01 * np.mean([np.linalg.norm(b) for _, b in pairs])
    return {
        path: np.linalg.norm(a - b) / max(np.linalg.norm(b), floor)
        for path, (a, b) in zip(masks.paths(got), pairs, strict=True)
    }


def assert_close(got, expected, bound):
    far = {path: error for path, error in errors(got, expected).items() if not error <= bound}
    assert not far, far


def distance(got, expected):
    """The relative error between two trees, each as one vector."""
    difference = jax.tree.map(np.subtract, got, expected)
    return float(optax.tree.norm(difference) / optax.tree.norm(expected))
