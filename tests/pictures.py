"""Images to prepare and to read: scikit-learn's photographs, and noise."""

import functools
import io
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


@functools.cache
def photograph(number=0, width=500, height=400):
    """One of scikit-learn's two photographs, [height, width, 3] uint8."""
    whole = Image.fromarray(load_sample_images().images[number])
    return np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS))


def encode(pixels, file_format="JPEG", mode=None, **options):
    """An image file's bytes."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.convert(mode or image.mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(seed, width=40, height=30, channels=3):
    """[height, width, channels] uint8."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels if channels > 1 else pixels[..., 0]


def colour_png_of_16_bits():
    """An image file's bytes, encoded here because Pillow can't."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" + bytes(range(12))))
        + chunk(b"IEND", b"")
    )


def transparent(mode):
    """The bytes of a PNG of which some pixels are transparent."""
    image = Image.fromarray(noise(0)).convert(mode)
    buffer = io.BytesIO()
    if mode == "RGBA":
        image.putalpha(Image.fromarray(noise(1, channels=1)))
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "PNG", transparency=image.getpixel((0, 0)))
    return buffer.getvalue()


def folder(path, classes=("cat", "dog"), each=10, **sizes):
    """A folder of images for each class; every third is a PNG, the others are JPEGs."""
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for k in range(each):
            # Each class has its hue, so that a model can learn it.
            pixels = noise(1000 * label + k, **sizes) // 2
            pixels[..., label % 3] += 120
            file_format, suffix = ("PNG", "png") if k % 3 == 0 else ("JPEG", "jpg")
            (path / name / f"{k:02d}.{suffix}").write_bytes(encode(pixels, file_format))
    return path


def tar(files):
    """A tar archive of {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()
