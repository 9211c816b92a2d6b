"""Reach of a ConvMixer that un-shuffles pixels: which can be moved home at all.

A pixel of the output depends on a square of the input, the receptive field of its depthwise
convolutions. Un-shuffling can restore a pixel only if the permutation left its value there; the
value of any other has to be guessed. Nothing but the sizes of model and image decides this.
"""

import numpy as np

Windows = tuple[np.ndarray, np.ndarray]


def reach(depth: int, kernel_size: int, patch_size: int, image_shape: tuple[int, ...]) -> float:
    """Share of pixels within reach, on average over all permutations.

    Equally, the share of the pairs (target, source) of pixels whose source lies in the target's
    receptive field.

    Args:
        depth: number of blocks.
        kernel_size: side k of the depthwise filters.
        patch_size: side of the stem's patches, which divides both sides of the image.
        image_shape: (H, W), or (H, W, C).

    Returns:
        A share in (0, 1].

    >>> round(reach(8, 7, 1, (28, 28)), 3), round(reach(8, 7, 1, (32, 32)), 3)
    (0.97, 0.894)
    """
    rows, columns = windows(depth, kernel_size, patch_size, image_shape)
    return float(rows.mean() * columns.mean())


def permutation_reach(permutation: np.ndarray, fields: Windows) -> float:
    """Share of pixels within reach for one permutation.

    Args:
        permutation: [H W] integers; position i of a shuffled image is the image's pixel
            ``permutation[i]``, row by row.
        fields: from `windows`.
    """
    rows, columns = fields
    width = len(columns)
    target, source = permutation, np.arange(len(permutation))
    in_rows = rows[target // width, source // width]
    return float((in_rows & columns[target % width, source % width]).mean())


def windows(depth: int, kernel_size: int, patch_size: int, image_shape: tuple[int, ...]) -> Windows:
    """Receptive field of every pixel, as the rows and the columns of its rectangle.

    With k = ``kernel_size``, it extends (k - 1) // 2 patches per block to the left and the top and
    k // 2 to the right and the bottom, as far as the image does: with an even k, the padding has
    one zero fewer before than behind.

    Args:
        depth, kernel_size, patch_size, image_shape: as in `reach`.

    Returns:
        Two arrays [H, H] and [W, W] bool. The first is True at [t, s] if a pixel in row t of the
        output sees row s of the input; the second says the same of columns.
    """
    before, after = depth * ((kernel_size - 1) // 2), depth * (kernel_size // 2)

    def seen(side: int) -> np.ndarray:
        patch = np.arange(side) // patch_size
        offset = patch[None, :] - patch[:, None]
        return (-before <= offset) & (offset <= after)

    height, width = image_shape[:2]
    return seen(height), seen(width)
