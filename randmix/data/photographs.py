"""From the bytes of a JPEG or PNG to pixels of one size: a random crop for training, the centre for evaluation.

Two decoders give the same: simplejpeg with OpenCV, and Pillow alone, half as fast, which is always installed. Both
decode with libjpeg-turbo, so evaluation sees the same pixels bit for bit; a training crop differs by rounding, by at
most 1 of 255 levels (a test says so).

A training crop is resized bilinearly. Where it is twice the wanted size or more, the JPEG is decoded at 1/2, 1/4 or 1/8,
which libjpeg does in the frequency domain: it is faster and skips no pixels. Evaluation is timm's, with which the
published ConvMixers were measured: bicubic with antialiasing to image_size / crop on the shorter side, then the centre.
"""

import contextlib
import functools
import importlib.util
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from randmix.errors import UserError

DECODERS = ("auto", "simplejpeg", "pillow")
_PACKAGES = ("simplejpeg", "cv2")
_ATTEMPTS = 10
# What Pillow raises for a bad file.
BAD_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def choose_decoder(name: str) -> str:
    """The decoder that a config's ``data.decoder`` means here, 'simplejpeg' or 'pillow'.

    Raises:
        UserError: simplejpeg is asked for and isn't installed.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if name == "simplejpeg" and missing:
        raise UserError(
            "config.data.decoder: got 'simplejpeg', which isn't installed whole; run `pip install simplejpeg "
            "opencv-python-headless`, or set auto or pillow"
        )
    return "pillow" if missing or name == "pillow" else "simplejpeg"


def random_box(draws: np.ndarray, width: int, height: int, *, scale: float, aspect: float) -> Box:
    """A crop of random area and aspect ratio, Inception's: the first of ten tries that fits.

    Args:
        draws: [10, 4] uniform in [0, 1): area, aspect ratio, left, top of each try.
        width, height: of the image.
        scale: the least share of the image's area; the largest is 1.
        aspect: the largest ratio of width to height; the least is one over it.

    Returns:
        The box; its area is uniform and its ratio log-uniform. If no try fits, the largest centred one that does.
    """
    area = width * height * (scale + (1 - scale) * draws[:, 0])
    ratio = aspect ** (2 * draws[:, 1] - 1)
    widths = np.rint(np.sqrt(area * ratio)).astype(int)
    heights = np.rint(np.sqrt(area / ratio)).astype(int)
    fits = (widths > 0) & (heights > 0) & (widths <= width) & (heights <= height)
    if not fits.any():
        w, h = (
            min(width, max(1, round(height * aspect))),
            min(height, max(1, round(width * aspect))),
        )
        return Box((width - w) // 2, (height - h) // 2, w, h)
    i = int(fits.argmax())
    w, h = int(widths[i]), int(heights[i])
    return Box(int(draws[i, 2] * (width - w + 1)), int(draws[i, 3] * (height - h + 1)), w, h)


def random_crop(
    data: bytes, draws: np.ndarray, *, image_size: int, scale: float, aspect: float, decoder: str
) -> np.ndarray:
    """A random part of an image, resized.

    Args:
        data: a JPEG or PNG.
        draws: see ``random_box``.
        image_size: side of the result.
        scale, aspect: see ``random_box``.
        decoder: from ``choose_decoder``.

    Returns:
        [image_size, image_size, 3] uint8.

    Raises:
        OSError and others of BAD_IMAGE: the bytes are no whole image.
    """
    width, height = _size(data, decoder)
    box = random_box(draws, width, height, scale=scale, aspect=aspect)
    shrink = max(n for n in (1, 2, 4, 8) if n == 1 or min(box.width, box.height) >= n * image_size)
    # A shrunken image has ceil(side / shrink) pixels a side.
    left, top = box.left // shrink, box.top // shrink
    right, bottom = -(-(box.left + box.width) // shrink), -(-(box.top + box.height) // shrink)
    size = (image_size, image_size)
    pixels = _decode_by_simplejpeg(data, shrink) if decoder == "simplejpeg" else None
    if pixels is not None:
        return _cv2().resize(pixels[top:bottom, left:right], size)
    part = _decode_by_pillow(data, shrink).crop((left, top, right, bottom))
    # Unlike Image.resize, the four nearest pixels only, as OpenCV does it.
    return np.asarray(
        part.transform(size, Image.Transform.EXTENT, (0, 0, *part.size), Image.Resampling.BILINEAR)
    )


def centre_crop(data: bytes, *, image_size: int, crop: float, decoder: str) -> np.ndarray:
    """The centre of an image, resized bicubically with antialiasing.

    Args:
        data: a JPEG or PNG.
        image_size: side of the result.
        crop: its share of the shorter side, in (0, 1].
        decoder: from ``choose_decoder``; the result is the same.

    Returns:
        [image_size, image_size, 3] uint8.

    Raises:
        OSError and others of BAD_IMAGE: the bytes are no whole image.
    """
    pixels = _decode_by_simplejpeg(data) if decoder == "simplejpeg" else None
    image = _decode_by_pillow(data) if pixels is None else Image.fromarray(pixels)
    shorter, side = min(image.size), int(image_size / crop)
    size = [side if n == shorter else int(side * n / shorter) for n in image.size]
    # Only the centre is computed; a filter reaches over the box's edges, so it's as if all were.
    corner = [round((n - image_size) / 2) for n in size]
    box = [
        (start + offset) * n / whole
        for offset in (0, image_size)
        for start, n, whole in zip(corner, image.size, size, strict=True)
    ]
    return np.asarray(
        image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=tuple(box))
    )


def _size(data: bytes, decoder: str) -> tuple[int, int]:
    """(width, height) from the header."""
    if decoder == "simplejpeg" and (header := _jpeg_header(data)):
        height, width, *_ = header
        return width, height
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def _decode_by_simplejpeg(data: bytes, shrink: int = 1) -> np.ndarray | None:
    """[H, W, 3] uint8, each side ceil(side / shrink); None of what Pillow must decode."""
    import simplejpeg

    if header := _jpeg_header(data):
        height, width = (-(-side // shrink) for side in header[:2])
        with contextlib.suppress(
            ValueError
        ):  # it takes a harmless warning for an error; Pillow decides
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    return None


def _decode_by_pillow(data: bytes, shrink: int = 1) -> Image.Image:
    """An RGB image, each side ceil(side / shrink)."""
    with Image.open(io.BytesIO(data)) as image:
        if shrink > 1 and image.format == "JPEG":
            image.draft(None, (image.width // shrink, image.height // shrink))
            return image.convert("RGB")
        return image.convert("RGB") if shrink == 1 else image.convert("RGB").reduce(shrink)


def _jpeg_header(data: bytes) -> tuple[int, int, str, str] | None:
    """(height, width, colour space, subsampling) of a JPEG that simplejpeg turns into RGB; None of another file."""
    import simplejpeg

    with contextlib.suppress(ValueError):
        header = simplejpeg.decode_jpeg_header(data)
        return None if header[2] in ("CMYK", "YCCK") else header
    return None


@functools.cache
def _cv2():
    import cv2

    cv2.setNumThreads(0)  # The threads are the stream's: one an image.
    return cv2
