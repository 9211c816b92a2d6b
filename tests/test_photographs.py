"""Decoding and cropping against Pillow, and the two decoders against each other."""

import functools
import io
import math
import sys
from concurrent import futures

import cv2
import numpy as np
import pictures
import pytest
from PIL import Image
from scipy import stats

from randmix.data import photographs
from randmix.errors import UserError

CROP = {"image_size": 64, "scale": 0.08, "aspect": 4 / 3}
FILES = {
    "landscape": lambda: pictures.encode(pictures.photograph(0)),
    "odd": lambda: pictures.encode(pictures.photograph(1, 401, 333)),
    "narrow": lambda: pictures.encode(pictures.photograph(1, 33, 700)),
    # decoded at 1/2, 1/4 and 1/8
    "large": lambda: pictures.encode(pictures.photograph(0, 1601, 1203)),
    "smaller": lambda: pictures.encode(pictures.photograph(0, 50, 40)),
    "full colour": lambda: pictures.encode(pictures.photograph(0), subsampling="4:4:4", quality=95),
    "progressive": lambda: pictures.encode(pictures.photograph(0), progressive=True),
    "grey": lambda: pictures.encode(pictures.photograph(0), mode="L"),
    "cmyk": lambda: pictures.encode(pictures.photograph(0), mode="CMYK"),
    "png": lambda: pictures.encode(pictures.photograph(0), "PNG"),
}
FILES = {name: functools.cache(encoded) for name, encoded in FILES.items()}


def draws(seed):
    return np.random.default_rng(seed).random((11, 4))


@pytest.mark.parametrize("name", FILES)
def test_evaluation_crops_do_not_depend_on_the_decoder(name):
    data = FILES[name]()
    one, other = (
        photographs.centre_crop(data, image_size=64, crop=0.96, decoder=decoder)
        for decoder in ("simplejpeg", "pillow")
    )
    assert one.shape == (64, 64, 3)
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
@pytest.mark.parametrize("interpolation", ["antialias", "antialias_random"])
@pytest.mark.parametrize("name", [*FILES, "noise"])
def test_antialiased_crops_are_those_of_torchvision_and_timm(name, interpolation, decoder):
    """Both crop and resize Pillow's image; timm draws bilinear or bicubic."""
    filters = []
    for seed in range(6):
        if name == "noise":
            width, height = np.random.default_rng(seed).integers(30, 700, 2)
            data = pictures.encode(pictures.noise(seed, width, height))
        else:
            data = FILES[name]()
        image = Image.open(io.BytesIO(data)).convert("RGB")
        left, top, width, height = photographs.random_box(
            draws(seed)[:10], *image.size, scale=0.08, aspect=4 / 3
        )
        bicubic = interpolation == "antialias_random" and draws(seed)[10, 0] >= 0.5
        filters.append(Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
        part = image.crop((left, top, left + width, top + height))
        expected = part.resize((64, 64), filters[-1])
        got = photographs.random_crop(
            data, draws(seed), decoder=decoder, interpolation=interpolation, **CROP
        )
        np.testing.assert_array_equal(got, np.asarray(expected))
    assert len(set(filters)) == (2 if interpolation == "antialias_random" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
@pytest.mark.parametrize("name", FILES)
def test_fast_crops_show_the_same_part(name, decoder):
    """Of smooth images, which look the same resized in any way, unless it is another part."""
    size = Image.open(io.BytesIO(FILES[name]())).size
    kind = {
        "full colour": {"subsampling": "4:4:4"},
        "progressive": {"progressive": True},
        "grey": {"mode": "L"},
        "cmyk": {"mode": "CMYK"},
        "png": {"file_format": "PNG"},
    }.get(name, {})
    for seed in range(6):
        smooth = Image.fromarray(pictures.noise(seed, 3, 3) // 2)
        smooth = smooth.resize(size, Image.Resampling.BICUBIC)
        data = pictures.encode(np.asarray(smooth), **kind)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        left, top, width, height = photographs.random_box(
            draws(seed)[:10], *size, scale=0.08, aspect=4 / 3
        )
        part = image.crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
        got = photographs.random_crop(data, draws(seed), decoder=decoder, **CROP)
        assert got.shape == (64, 64, 3)
        assert abs((got - expected).mean()) < 1.2  # libjpeg's fast transform darkens by up to 1
        if min(width, height) < 16:
            continue
        across, down = width // 8, height // 8
        moved = image.crop((left + across, top + down, left + width + across, top + height + down))
        moved = np.asarray(moved.resize((64, 64), Image.Resampling.BILINEAR))
        assert np.abs(got - expected).mean() < np.abs(moved - expected).mean() / 4


def test_a_large_crop_is_decoded_smaller_and_looks_the_same():
    """Against area averaging of the full decoded image: no pixel is skipped, nothing is shifted."""
    data = pictures.encode(pictures.photograph(0, 1600, 1200))
    take_all = np.full((11, 4), 0.5)
    got = photographs.random_crop(
        data, take_all, image_size=64, scale=1.0, aspect=4 / 3, decoder="simplejpeg"
    )
    box = photographs.random_box(take_all[:10], 1600, 1200, scale=1.0, aspect=4 / 3)
    assert box == (0, 0, 1600, 1200)
    whole = pictures.photograph(0, 1600, 1200)
    reference = cv2.resize(whole, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    skipping = cv2.resize(whole, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(got - reference).mean() < np.abs(skipping - reference).mean() / 2
    assert abs((got - reference).mean()) < 0.5


def test_random_boxes_have_the_areas_and_ratios_of_inceptions():
    boxes = [
        photographs.random_box(draws(seed)[:10], 1000, 1000, scale=0.25, aspect=4 / 3)
        for seed in range(1500)
    ]
    for left, top, width, height in boxes:
        assert 0 <= left <= 1000 - width
        assert 0 <= top <= 1000 - height
        assert 0.245 <= width * height / 1e6 <= 1.0
        assert 0.74 <= width / height <= 1.35
    # A large box of extreme ratio doesn't fit and is redrawn, so only small ones follow the
    # distribution.
    small = [box for box in boxes if box.width * box.height < 0.7e6]
    ratios = [math.log(box.width / box.height, 4 / 3) for box in small]
    assert stats.kstest(ratios, stats.uniform(-1, 2).cdf).pvalue > 0.01
    areas = [box.width * box.height / 1e6 for box in small]
    assert stats.kstest(areas, stats.uniform(0.25, 0.45).cdf).pvalue > 0.01
    places = [box.left / (1000 - box.width) for box in small]
    assert stats.kstest(places, stats.uniform().cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (100, 10, (43, 0, 13, 10)),
        (10, 100, (0, 43, 10, 13)),
        (7, 7, (0, 0, 7, 7)),
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_where_no_try_fits_it_is_the_largest_centred_box(width, height, box):
    assert (
        photographs.random_box(np.ones((10, 4)) - 1e-9, width, height, scale=1.0, aspect=4 / 3)
        == box
    )


@pytest.mark.parametrize(("width", "height"), [(500, 400), (333, 401), (224, 224), (100, 90)])
def test_evaluation_crops_as_timm_does(width, height):
    """Resize the shorter side to int(224 / 0.96) bicubically, then crop the centre, in Pillow."""
    data = pictures.encode(pictures.photograph(0, width, height))
    image = Image.open(io.BytesIO(data))
    side = math.floor(224 / 0.96)
    long = int(side * max(width, height) / min(width, height))
    size = (side, long) if width < height else (long, side)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((n - 224) / 2) for n in size)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    got = photographs.centre_crop(data, image_size=224, crop=0.96, decoder="simplejpeg").astype(int)
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        pictures.encode(pictures.photograph(0))[:9000],
        b"\xff\xd8\xff\xe0" + b"\0" * 99,
    ],
)
def test_damaged_files_are_noticed(data, decoder):
    with pytest.raises(photographs.BAD_IMAGE):
        photographs.random_crop(data, draws(0), decoder=decoder, **CROP)
    with pytest.raises(photographs.BAD_IMAGE):
        photographs.centre_crop(data, image_size=64, crop=0.96, decoder=decoder)


def test_a_harmless_warning_is_no_damage():
    """simplejpeg refuses bytes between two markers, of which libjpeg only warns."""
    data = FILES["landscape"]()
    start_of_scan = data.index(b"\xff\xda")
    data = data[:start_of_scan] + b"\0\0\0" + data[start_of_scan:]
    crops = [
        photographs.random_crop(data, draws(0), decoder=decoder, interpolation="antialias", **CROP)
        for decoder in ("simplejpeg", "pillow")
    ]
    np.testing.assert_array_equal(crops[0], crops[1])


def test_threads_do_not_share_the_memory_they_decode_into():
    files = [pictures.encode(pictures.photograph(k % 2, 300 + 40 * k, 500)) for k in range(8)]

    def crop(k):
        return photographs.random_crop(files[k % 8], draws(k), decoder="simplejpeg", **CROP)

    expected = [crop(k) for k in range(64)]
    with futures.ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(crop, range(64)), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_decoder_is_what_is_installed(monkeypatch):
    assert (
        photographs.choose_decoder("auto")
        == photographs.choose_decoder("simplejpeg")
        == "simplejpeg"
    )
    assert photographs.choose_decoder("pillow") == "pillow"
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert photographs.choose_decoder("auto") == "pillow"
    with pytest.raises(UserError, match="but cv2 can't be imported; run `pip install"):
        photographs.choose_decoder("simplejpeg")
