"""The Square Attack: black-box random search that needs the classifier's scores alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from randmix.attacks.balls import require_keys
from randmix.attacks.scores import Array, Attempt, Classifier, column, is_correct, worse
from randmix.attacks.steps import require_positive
from randmix.errors import UserError

# The paper halves the square's area after these of 10,000 queries.
_HALVED_AFTER = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
_FIRST_SHARE = 0.8  # as AutoAttack does, arXiv 2003.01690


def square(
    classifier: Classifier,
    images: Array,
    labels: Array,
    epsilon: float | Array,
    keys: Array,
    *,
    queries: int = 1000,
    norm: str = "linf",
) -> Array:
    """Square Attack (Andriushchenko et al., arXiv 1912.00049, algorithms 1 and 2), "linf" only.

    The first query is the image with vertical stripes of +epsilon and -epsilon in each channel.
    Each further one moves a random square of the best image so far to +epsilon or -epsilon in each
    channel, and is kept if it is worse for the classifier, by the margin. The squares cover 0.8 of
    the image at first; that share is halved on the paper's schedule, stretched to ``queries``. The
    search uses no gradient, so a classifier that hides its gradient gains nothing by it. It stops
    early once every example of the batch is misclassified.

    As in the authors' code, no query is spent on a square that would change nothing; its signs are
    reversed.

    Args:
        classifier, images, labels, epsilon, keys: see ``randmix.attacks``.
        queries: number of perturbed images that the classifier scores, at least 1; the paper's
            experiments take up to 10,000.
        norm: "linf".

    Raises:
        UserError: an argument is out of range.
    """
    require_positive(queries=queries)
    require_linf(norm)
    own_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(require_keys(keys))
    sides = jnp.asarray(_sides(queries, *images.shape[1:3]))

    def unfinished(carry: tuple[Array, Attempt]) -> Array:
        query, worst = carry
        return (query < queries) & is_correct(worst.logits, labels).any() & (epsilon > 0)

    def another(carry: tuple[Array, Attempt]) -> tuple[Array, Attempt]:
        query, worst = carry
        propose = partial(_with_square, query, sides[query - 1], epsilon)
        points = jax.vmap(propose)(own_keys, images, worst.images)
        return query + 1, worse(labels, worst, Attempt(points, classifier(points)))

    clean = Attempt(images, classifier(images))
    striped = jax.vmap(partial(_with_stripes, epsilon))(own_keys, images)
    # The search starts at the stripes even where the clean image is worse, unless that is wrong.
    first = jnp.where(column(is_correct(clean.logits, labels)), striped, images)
    found = jax.lax.while_loop(
        unfinished, another, (jnp.int32(1), Attempt(first, classifier(first)))
    )[1]
    return worse(labels, clean, found).images


def require_linf(norm: str) -> None:
    """Raises a UserError for any norm that the Square Attack isn't implemented for."""
    if norm != "linf":
        raise UserError(f"square: got the norm {norm!r}, allowed is 'linf'; leave square out")


def _sides(queries: int, height: int, width: int) -> np.ndarray:
    """The side of each square in turn, in pixels: [queries] int32.

    >>> _sides(10_000, 32, 32)[[0, 10, 11, 51, 9999]]
    array([29, 29, 20, 14,  1], dtype=int32)
    """
    progress = np.arange(queries) * 10_000 // queries
    shares = _FIRST_SHARE / 2.0 ** np.searchsorted(_HALVED_AFTER, progress)
    sides = np.round(np.sqrt(shares * height * width)).astype(np.int32)
    return np.clip(sides, 1, min(height, width))


def _with_stripes(epsilon: float | Array, key: Array, image: Array) -> Array:
    """An image [H, W, C] with random vertical stripes."""
    signs = jax.random.rademacher(key, (1, *image.shape[1:]), image.dtype)
    return jnp.clip(image + epsilon * signs, 0, 1)


def _with_square(
    query: Array, side: Array, epsilon: float | Array, key: Array, image: Array, best: Array
) -> Array:
    """The best image [H, W, C] so far with another random square."""
    place, sign = jax.random.split(jax.random.fold_in(key, query))
    size = jnp.array(image.shape[:2])
    corner = jax.random.randint(place, (2,), 0, size - side + 1)
    rows, columns = jnp.indices(image.shape[:2]) - corner[:, None, None]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    step = epsilon * jax.random.rademacher(sign, (1, 1, image.shape[2]), image.dtype)

    def moved(step: Array) -> Array:
        return jnp.where(inside[..., None], jnp.clip(image + step, 0, 1), best)

    changed = (moved(step) != best).any()
    return jnp.where(changed, moved(step), moved(-step))
