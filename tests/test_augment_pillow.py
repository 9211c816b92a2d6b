"""RandAugment's operations against Pillow, on photographs and on gray digits."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn import datasets

from randmix.data.augment import crops, lookup, randaugment, warp

pytestmark = pytest.mark.slow

FILL = 117


@cache
def photographs():
    """Upright crops of scikit-learn's two photographs, one of them dark: [6, 48, 40, 3] uint8."""
    rng = np.random.default_rng(0)
    parts = []
    for photograph in datasets.load_sample_images().images:
        for _ in range(2):
            y, x = rng.integers(0, 300, 2)
            parts.append(photograph[y : y + 48, x : x + 40])
        parts.append(photograph[100:388:6, 100:340:6])
    parts[0] = parts[0] // 3
    return np.stack(parts)


@cache
def digits():
    """Gray images with few values: [6, 8, 8, 1] uint8."""
    return (datasets.load_digits().images[:6, ..., None] * 255 / 16).astype(np.uint8)


IMAGES = {"photographs": photographs, "digits": digits}


def solarize_add(image, add):
    table = [min(255, v + add) if v < 128 else v for v in range(256)]
    return image.point(table * len(image.getbands()))


def posterize(image, bits):
    # timm's magnitude 10 keeps 0 bits, which Pillow refuses; by the definition, all is black.
    return (
        ImageOps.posterize(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))
    )


def affine(image, matrix, resample):
    fill = (FILL,) * len(image.getbands()) if image.mode == "RGB" else FILL
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


VALUES = {
    "autocontrast": ([0], lambda image, _: ImageOps.autocontrast(image)),
    "equalize": ([0], lambda image, _: ImageOps.equalize(image)),
    "invert": ([0], lambda image, _: ImageOps.invert(image)),
    "posterize": (range(9), posterize),
    "solarize": ([0, 1, 26, 128, 200, 255, 256], ImageOps.solarize),
    "solarize_add": ([0, 1, 55, 99, 110], solarize_add),
    "brightness": (
        [0.1, 0.3, 0.64, 1.0, 1.36, 1.81, 1.9],
        lambda i, f: ImageEnhance.Brightness(i).enhance(f),
    ),
    "contrast": (
        [0.1, 0.3, 0.64, 1.0, 1.36, 1.81, 1.9],
        lambda i, f: ImageEnhance.Contrast(i).enhance(f),
    ),
    "color": (
        [0.1, 0.3, 0.64, 1.0, 1.36, 1.81, 1.9],
        lambda i, f: ImageEnhance.Color(i).enhance(f),
    ),
    "sharpness": (
        [0.1, 0.3, 0.64, 1.0, 1.36, 1.81, 1.9],
        lambda i, f: ImageEnhance.Sharpness(i).enhance(f),
    ),
}
POSITIONS = {
    "rotate": ([-30, -12.3, 0, 4.5, 27], None),
    "shear_x": ([-0.3, -0.12, 0, 0.27], lambda i, s, r: affine(i, (1, s, 0, 0, 1, 0), r)),
    "shear_y": ([-0.3, -0.12, 0, 0.27], lambda i, s, r: affine(i, (1, 0, 0, s, 1, 0), r)),
    "translate_x": ([-14.4, -3, 0, 2.5, 30], lambda i, p, r: affine(i, (1, 0, p, 0, 1, 0), r)),
    "translate_y": ([-14.4, -3, 0, 2.5, 30], lambda i, p, r: affine(i, (1, 0, 0, 0, 1, p), r)),
}
RESAMPLE = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}


def rotate(image, degrees, resample):
    fill = (FILL,) * 3 if image.mode == "RGB" else FILL
    return image.rotate(degrees, resample, fillcolor=fill)


@partial(jax.jit, static_argnames="interpolation")
def apply(images, parameters, interpolation):
    fill = (FILL,) * images.shape[-1]
    return randaugment.apply(images, parameters, fill=fill, interpolation=interpolation)


def results(name, images, arguments, interpolation="bilinear"):
    """Yields, for each argument, its results on all images: [N, H, W, C] uint8."""
    n, h, w, _ = images.shape
    for argument in arguments:
        one = randaugment.pack(randaugment.OPERATIONS[name](argument, h, w))
        many = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), one)
        yield np.asarray(apply(images, many, interpolation))


def pillow(function, images, *arguments):
    def one(image):
        image = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
        return np.asarray(function(image, *arguments)).reshape(images.shape[1:])

    return np.stack([one(image) for image in images])


def difference(ours, theirs):
    return np.abs(ours.astype(int) - theirs)


@pytest.mark.parametrize("of", IMAGES)
@pytest.mark.parametrize("name", VALUES)
def test_values_are_pillows(name, of):
    images, (arguments, function) = IMAGES[of](), VALUES[name]
    blended = name in ("brightness", "contrast", "color", "sharpness")
    for argument, ours in zip(arguments, results(name, images, arguments), strict=True):
        theirs = pillow(function, images, argument)
        apart = difference(ours, theirs)
        if blended or name == "autocontrast":
            # A difference of 1 in few pixels: Pillow blends and divides in another precision.
            assert apart.max() <= 1
            assert (apart > 0).mean() < (0.05 if name == "autocontrast" else 0.005), (
                argument,
                apart.mean(),
            )
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} {argument}")
    if of == "digits" and name == "color":
        np.testing.assert_array_equal(ours, images)  # gray has no colour to remove


@pytest.mark.parametrize("of", IMAGES)
@pytest.mark.parametrize("interpolation", RESAMPLE)
@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_pillows(name, interpolation, of):
    images, (arguments, function) = IMAGES[of](), POSITIONS[name]
    for argument, ours in zip(
        arguments, results(name, images, arguments, interpolation), strict=True
    ):
        theirs = pillow(function or rotate, images, argument, RESAMPLE[interpolation])
        apart = difference(ours, theirs)
        if argument == 0:
            np.testing.assert_array_equal(ours, images)
        if interpolation == "nearest":
            assert (apart > 0).mean() <= 0.001, (argument, (apart > 0).mean())
        else:
            assert apart.max() <= 1, argument
            # Pillow truncates: exact integers fall to either side, in double precision too.
            assert (apart > 0).mean() < 0.05, (argument, (apart > 0).mean())


def test_autocontrast_is_at_most_1_off_for_any_range():
    v = np.arange(256)
    tables = jax.jit(jax.vmap(lookup.autocontrast))
    off = total = 0
    for low in range(0, 256, 5):
        counts = np.zeros((255 - low, 256), np.int32)
        counts[:, low] = 1
        counts[np.arange(255 - low), np.arange(low + 1, 256)] = 1
        # one shape, one compilation
        counts = np.concatenate([counts, np.eye(256, dtype=np.int32)[[0] * low]])
        ours = np.asarray(tables(jnp.asarray(counts)))
        for row, high in enumerate(range(low + 1, 256)):
            scale = 255 / (high - low)
            theirs = np.clip((v * scale - low * scale).astype(int), 0, 255)[low : high + 1]
            apart = difference(ours[row, low : high + 1], theirs)
            assert apart.max() <= 1
            off, total = off + (apart > 0).sum(), total + apart.size
    assert off / total < 0.005


@pytest.mark.parametrize("of", IMAGES)
def test_a_resized_crop_is_pillows(of):
    images = IMAGES[of]()
    _, h, w, _ = images.shape
    resize = jax.jit(jax.vmap(crops._resize_box, in_axes=(0, None, None, None, None)))
    for box in ((0, 0, h, w), (1, 2, h - 3, w - 4), (h // 2, w // 3, h // 2, w // 2), (3, 1, 2, 5)):
        top, left, height, width = box
        part = (left, top, left + width, top + height)
        theirs = pillow(
            lambda image, part=part: image.crop(part).resize((w, h), Image.Resampling.BILINEAR),
            images,
        )
        apart = difference(np.asarray(resize(images, *box)), theirs)
        assert apart.max() <= 1, box
        assert (apart > 0).mean() < 0.05, box
    np.testing.assert_array_equal(resize(images, 0, 0, h, w), images)


def test_the_edges_of_a_bilinear_image_are_repeated_half_a_pixel_wide():
    image = np.zeros((1, 4, 4, 1), np.uint8) + 200
    matrices = np.array([warp.translation(-0.4, 0.0)], np.float32)
    np.testing.assert_array_equal(jax.jit(partial(warp.apply, fill=(9,)))(image, matrices), image)
    matrices = np.array([warp.translation(-0.6, 0.0)], np.float32)
    moved = jax.jit(partial(warp.apply, fill=(9,)))(image, matrices)[0, 0, :, 0]
    np.testing.assert_array_equal(moved, [9, 200, 200, 200])
