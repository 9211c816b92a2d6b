"""Decoding and cropping of JPEGs and PNGs: random crops for training, centre crops for evaluation.

Two decoders are equivalent: simplejpeg with OpenCV, and Pillow alone, which is half as fast but
always installed. Both use libjpeg-turbo, so evaluation crops are equal bit for bit; training crops
differ by rounding, by at most 1 of 255 levels (a test checks it).

A training crop is resized bilinearly. If it is at least twice the requested size, the JPEG is
decoded at 1/2, 1/4 or 1/8, which libjpeg does in the frequency domain: this is faster and skips no
pixels. Evaluation is timm's, with which the published ConvMixers were measured: bicubic resizing
with antialiasing to image_size / crop on the shorter side, then the centre crop.
"""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from randmix.errors import UserError

DECODERS = ("auto", "simplejpeg", "pillow")
_ATTEMPTS = 10
# Pillow's errors for a bad file.
BAD_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


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
    data: bytes, draws: np.ndarray, *, image_size: int, scale: float, aspect: float, decoder: str
) -> np.ndarray:
    """Decodes a random crop of an image and resizes it bilinearly.

    Args:
        data: the bytes of a JPEG or PNG.
        draws: see ``random_box``.
        image_size: side of the result in pixels.
        scale, aspect: see ``random_box``.
        decoder: from ``choose_decoder``.

    Returns:
        [image_size, image_size, 3] uint8.

    Raises:
        OSError or another of BAD_IMAGE: the bytes are not a complete image.
    """
    width, height = _size(data, decoder)
    box = random_box(draws, width, height, scale=scale, aspect=aspect)
    shrink = max(n for n in (1, 2, 4, 8) if n == 1 or min(box.width, box.height) >= n * image_size)
    # The sides of a shrunken image are ceil(side / shrink) pixels.
    left, top = box.left // shrink, box.top // shrink
    right, bottom = -(-(box.left + box.width) // shrink), -(-(box.top + box.height) // shrink)
    size = (image_size, image_size)
    pixels = _decode_by_simplejpeg(data, shrink) if decoder == "simplejpeg" else None
    if pixels is not None:
        cv2, _ = _fast_libraries()
        return cv2.resize(pixels[top:bottom, left:right], size)
    part = _decode_by_pillow(data, shrink).crop((left, top, right, bottom))
    # Uses only the four nearest pixels, as OpenCV does, unlike Image.resize.
    return np.asarray(
        part.transform(size, Image.Transform.EXTENT, (0, 0, *part.size), Image.Resampling.BILINEAR)
    )


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
    pixels = _decode_by_simplejpeg(data) if decoder == "simplejpeg" else None
    image = _decode_by_pillow(data) if pixels is None else Image.fromarray(pixels)
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


def _size(data: bytes, decoder: str) -> tuple[int, int]:
    """Reads (width, height) from the header."""
    if decoder == "simplejpeg" and (header := _jpeg_header(data)):
        height, width, *_ = header
        return width, height
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def _decode_by_simplejpeg(data: bytes, shrink: int = 1) -> np.ndarray | None:
    """Decodes to [H, W, 3] uint8, sides ceil(side / shrink); None for files left to Pillow."""
    _, simplejpeg = _fast_libraries()
    if header := _jpeg_header(data):
        height, width = (-(-side // shrink) for side in header[:2])
        # simplejpeg also raises on harmless warnings; Pillow decides then.
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    return None


def _decode_by_pillow(data: bytes, shrink: int = 1) -> Image.Image:
    """Decodes to an RGB image, sides ceil(side / shrink)."""
    with Image.open(io.BytesIO(data)) as image:
        if shrink > 1 and image.format == "JPEG":
            image.draft(None, (image.width // shrink, image.height // shrink))
            return image.convert("RGB")
        return image.convert("RGB") if shrink == 1 else image.convert("RGB").reduce(shrink)


def _jpeg_header(data: bytes) -> tuple[int, int, str, str] | None:
    """Header (height, width, colour space, subsampling) of a JPEG; None for other files.

    Also None for colour spaces that simplejpeg can't convert to RGB.
    """
    _, simplejpeg = _fast_libraries()
    with contextlib.suppress(ValueError):
        height, width, colour_space, subsampling = simplejpeg.decode_jpeg_header(data)
        if colour_space not in ("CMYK", "YCCK"):
            return int(height), int(width), colour_space, subsampling
    return None
