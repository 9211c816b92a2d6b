"""Decoding and cropping of JPEGs and PNGs: random crops for training, centre crops for evaluation.

Two decoders read the same pixels with libjpeg-turbo: simplejpeg, and Pillow, which is slower but
always installed. Evaluation is timm's, with which the published ConvMixers were measured, bit for
bit with both decoders: bicubic resizing with antialiasing to image_size / crop on the shorter side,
then the centre crop.

A training crop is resized in one of three ways:

- "antialias" is bilinear with antialiasing, bit for bit what torchvision and timm do to Pillow's
  images; "antialias_random" is bilinear or bicubic with equal probability, timm's default.
- "fast" decodes the JPEG at 1/2, 1/4 or 1/8 where the crop is at least that many times the
  requested size, which libjpeg does in the frequency domain. With simplejpeg, it also uses
  libjpeg's fast transform and chroma upsampling, off by 1.2 of 255 levels on average, and OpenCV's
  bilinear resizing from the four nearest pixels. Pillow's cheapest resizing is the antialiased one.
"""

import contextlib
import io
import threading
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from randmix.errors import UserError

_ATTEMPTS = 10
DRAWS = (_ATTEMPTS + 1, 4)  # of a random crop: attempts at a box, then the choice of a filter
# Pillow's errors for a bad file.
BAD_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def reason(error: Exception) -> str:
    """Why bytes can't be read, in one line; Pillow's own text may hold an object's address."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return next(iter(str(error).splitlines()), "unreadable")


# Each thread decodes into memory of its own, for fresh memory costs a page fault for every 4 KiB.
# Larger images, which are rare, get fresh memory.
_MOST_KEPT = 2**25
_thread = threading.local()


class Box(NamedTuple):
    """A crop of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def choose_decoder(name: str) -> str:
    """Resolves a config's ``data.decoder`` to an installed one, 'simplejpeg' or 'pillow'.

    OpenCV then starts no threads of its own.

    Raises:
        UserError: simplejpeg is requested and not installed.
    """
    if name == "pillow":
        return name
    try:
        cv2, _ = _fast_libraries()
    except ImportError as error:
        if name == "auto":
            return "pillow"
        raise UserError(
            f"config.data.decoder: got 'simplejpeg', but {error.name} can't be imported; "
            "run `pip install simplejpeg opencv-python-headless`, or set auto or pillow"
        ) from error
    cv2.setNumThreads(0)  # the stream's threads decode one image each
    return "simplejpeg"


def _fast_libraries() -> tuple[Any, Any]:
    """Returns OpenCV and simplejpeg, which are optional and which photographs alone need."""
    import cv2
    import simplejpeg

    return cv2, simplejpeg


def random_box(draws: np.ndarray, width: int, height: int, *, scale: float, aspect: float) -> Box:
    """Inception's crop, of random area and aspect ratio: the first of ten draws that fits.

    Args:
        draws: [10, 4] uniform in [0, 1): area, aspect ratio, left and top of each draw.
        width, height: the image's size in pixels.
        scale: the lowest share of the image's area, in (0, 1]; the highest is 1.
        aspect: the highest ratio of width to height; the lowest is its inverse.

    Returns:
        The crop; its area is uniform and its ratio log-uniform. If no draw fits, a centred crop as
        large as ``aspect`` allows.
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
    data: bytes,
    draws: np.ndarray,
    *,
    image_size: int,
    scale: float,
    aspect: float,
    decoder: str,
    interpolation: str = "fast",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes a random crop of an image and resizes it.

    Args:
        data: the bytes of a JPEG or PNG.
        draws: [11, 4] uniform in [0, 1); ten for ``random_box``, one for the filter.
        image_size: side of the result in pixels.
        scale, aspect: see ``random_box``.
        decoder: from ``choose_decoder``.
        interpolation: "fast", "antialias" or "antialias_random"; see this module's docstring.
        out: memory for the result, which OpenCV uses; None for new memory.

    Returns:
        [image_size, image_size, 3] uint8.

    Raises:
        OSError or another of BAD_IMAGE: the bytes are not a complete image.
    """
    fast = interpolation == "fast"

    def choose(width: int, height: int) -> tuple[Box, int]:
        box = random_box(draws[:_ATTEMPTS], width, height, scale=scale, aspect=aspect)
        most = min(box.width, box.height) // image_size if fast else 1
        return box, max(n for n in (1, 2, 4, 8) if n == 1 or n <= most)

    part = None
    if decoder == "simplejpeg" and (size := _jpeg_size(data)):
        box, shrink = choose(*size)
        pixels = _decode_by_simplejpeg(data, *size, shrink=shrink, fast=fast)
        if pixels is not None:
            left, top, right, bottom = _corners(box, shrink)
            part = pixels[top:bottom, left:right]
            if fast:
                cv2, _ = _fast_libraries()
                return cv2.resize(part, (image_size, image_size), dst=out)
            part = Image.fromarray(part)
    if part is None:
        with Image.open(io.BytesIO(data)) as image:
            box, shrink = choose(*image.size)
            if not image.draft(None, (image.width // shrink, image.height // shrink)):
                shrink = 1  # not a JPEG
            part = image.crop(_corners(box, shrink)).convert("RGB")
    bicubic = interpolation == "antialias_random" and draws[_ATTEMPTS, 0] >= 0.5
    resampling = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    return np.asarray(part.resize((image_size, image_size), resampling))


def _corners(box: Box, shrink: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box in a shrunken image, whose sides are rounded up."""
    right, bottom = box.left + box.width, box.top + box.height
    return box.left // shrink, box.top // shrink, -(-right // shrink), -(-bottom // shrink)


def centre_crop(data: bytes, *, image_size: int, crop: float, decoder: str) -> np.ndarray:
    """Decodes the centre of an image and resizes it bicubically with antialiasing.

    Args:
        data: the bytes of a JPEG or PNG.
        image_size: side of the result in pixels.
        crop: the crop's share of the shorter side, in (0, 1].
        decoder: from ``choose_decoder``; the result doesn't depend on it.

    Returns:
        [image_size, image_size, 3] uint8.

    Raises:
        OSError or another of BAD_IMAGE: the bytes are not a complete image.
    """
    size = _jpeg_size(data) if decoder == "simplejpeg" else None
    pixels = _decode_by_simplejpeg(data, *size) if size else None
    if pixels is not None:
        image = Image.fromarray(pixels)
    else:
        with Image.open(io.BytesIO(data)) as file:
            image = file.convert("RGB")
    shorter, side = min(image.size), int(image_size / crop)
    size = [side if n == shorter else int(side * n / shorter) for n in image.size]
    # Only the centre is computed. The filter reads beyond the box's edges, so the result is the
    # same as if the entire image were resized.
    corner = [round((n - image_size) / 2) for n in size]
    left, top, right, bottom = (
        (start + offset) * n / whole
        for offset in (0, image_size)
        for start, n, whole in zip(corner, image.size, size, strict=True)
    )
    return np.asarray(
        image.resize(
            (image_size, image_size), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
        )
    )


def _decode_by_simplejpeg(
    data: bytes, width: int, height: int, *, shrink: int = 1, fast: bool = False
) -> np.ndarray | None:
    """Decodes to [H, W, 3] uint8, sides ceil(side / shrink); None for files left to Pillow.

    The thread's next call may overwrite the result.
    """
    _, simplejpeg = _fast_libraries()
    width, height = -(-width // shrink), -(-height // shrink)
    options = {"min_width": width, "min_height": height, "fastdct": fast, "fastupsample": fast}
    # simplejpeg also raises on harmless warnings; Pillow decides then.
    with contextlib.suppress(ValueError):
        return simplejpeg.decode_jpeg(data, "RGB", buffer=_memory(width * height * 3), **options)
    return None


def _memory(size: int) -> np.ndarray | None:
    """Returns at least ``size`` bytes that belong to this thread; None for very large images."""
    if size > _MOST_KEPT:
        return None
    if len(getattr(_thread, "memory", ())) < size:
        _thread.memory = np.empty(size, np.uint8)
    return _thread.memory


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Reads (width, height) of a JPEG; None for files and colour spaces left to Pillow."""
    _, simplejpeg = _fast_libraries()
    with contextlib.suppress(ValueError):
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        if colour_space not in ("CMYK", "YCCK"):
            return int(width), int(height)
    return None
