"""Distributions of augmentation's draws, and mixed labels, as timm and torchvision define them."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from randmix.data.augment import (
    crops,
    enhance,
    erasing,
    mixing,
    policies,
    randaugment,
)
from randmix.training import tasks

pytestmark = pytest.mark.slow

H, W = 12, 10
DRAWS = 40_000
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def keys(n=DRAWS):
    return jax.random.split(jax.random.key(0), n)


def near(share, expected, draws=DRAWS):
    """Within five standard deviations of a binomial share."""
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / draws)


@cache
def drawn(text):
    policy = policies.parse(text)
    one = partial(randaugment.draw, policy=policy, height=20, width=40)
    return jax.device_get(jax.jit(jax.vmap(one))(keys()))


def kinds(drawn):
    """The operation of each draw, inferred from its parameters alone."""
    m = np.asarray(drawn.matrix)
    where = {
        "autocontrast": drawn.stretch == 1,
        "equalize": drawn.stretch == 2,
        "invert": drawn.threshold == 0,
        "posterize": drawn.bits < 8,
        "solarize": (drawn.threshold > 0) & (drawn.threshold < 256),
        "solarize_add": drawn.add > 0,
        "brightness": (drawn.factor != 1) & (drawn.degenerate == enhance.BLACK),
        "contrast": (drawn.factor != 1) & (drawn.degenerate == enhance.MEAN),
        "color": (drawn.factor != 1) & (drawn.degenerate == enhance.GRAY),
        "sharpness": (drawn.factor != 1) & (drawn.degenerate == enhance.SMOOTH),
        "rotate": m[:, 0] != 1,
        "shear_x": (m[:, 1] != 0) & (m[:, 0] == 1),
        "shear_y": (m[:, 3] != 0) & (m[:, 0] == 1),
        "translate_x": (m[:, 2] != 0) & (m[:, 0] == 1),
        "translate_y": (m[:, 5] != 0) & (m[:, 0] == 1),
    }
    assert (sum(w.astype(int) for w in where.values()) <= 1).all()
    return where


def test_timms_operations_are_equally_likely_and_half_of_them_applied():
    where = kinds(drawn("rand-m9-mstd0.5-inc1"))
    for name, hits in where.items():
        assert near(hits.mean(), 1 / 30), name
    assert near(sum(hits.mean() for hits in where.values()), 0.5)


def test_timms_magnitudes_are_normal_cut_off_and_of_either_sign():
    values, where = drawn("rand-m9-mstd0.5-inc1"), kinds(drawn("rand-m9-mstd0.5-inc1"))
    for name, column, scale in (
        ("shear_x", 1, 0.03),
        ("shear_y", 3, 0.03),
        ("translate_x", 2, 0.045 * 40),
        ("translate_y", 5, 0.045 * 20),
    ):
        levels = values.matrix[where[name], column] / scale
        assert near((levels > 0).mean(), 0.5, len(levels)), name
        # min(N(9, 0.5), 10): two standard deviations are cut off.
        assert abs(np.abs(levels).mean() - 9 + 0.5 * 0.0085) < 5 * 0.5 / np.sqrt(len(levels)), name
        assert np.abs(levels).max() == pytest.approx(10, rel=1e-5)
        assert (np.abs(levels) > 9.9999).mean() == pytest.approx(0.0228, abs=0.02)
    factors = values.factor[where["brightness"]]
    assert near((factors > 1).mean(), 0.5, len(factors))
    assert factors.min() == pytest.approx(0.1)
    assert factors.max() == pytest.approx(1.9)
    assert set(np.unique(values.bits[where["posterize"]])) == {0, 1, 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # timm's documentation, worked out for 20 x 40 pixels: 4 - int(3.6) bits,
        # 256 - int(230.4), int(99), 1 +- 0.81 ...
        (
            "rand-m9-n1-inc1",
            {"posterize": {1}, "solarize": {26}, "solarize_add": {99}, "factor": {0.19, 1.81},
             "rotate": 27, "shear": 0.27, "x": 16.2, "y": 8.1},
        ),
        # Without inc1 they weaken: int(2.8) bits, int(179.2), int(77), 0.1 + 1.26.
        (
            "rand-m7-n1",
            {"posterize": {2}, "solarize": {179}, "solarize_add": {77}, "factor": {1.36},
             "rotate": 21, "shear": 0.21, "x": 12.6, "y": 6.3},
        ),
        # torchvision: 12 of 30 steps to 4 bits less, 255 - 102, 1 +- 0.36,
        # 0.4 of 150 / 331 of the side, in integer pixels.
        (
            "torchvision-n2-m12",
            {"posterize": {6}, "solarize": {153}, "solarize_add": set(), "factor": {0.64, 1.36},
             "rotate": 12, "shear": 0.12, "x": 7, "y": 3},
        ),
    ],
)  # fmt: skip
def test_magnitudes_by_hand(text, expected):
    values, where = drawn(text), kinds(drawn(text))
    assert set(values.bits[where["posterize"]].tolist()) == expected["posterize"]
    assert set(values.threshold[where["solarize"]].tolist()) == expected["solarize"]
    assert set(values.add[where["solarize_add"]].tolist()) == expected["solarize_add"]
    for name in ("brightness", "contrast", "color", "sharpness"):
        assert {round(float(f), 5) for f in values.factor[where[name]]} == expected["factor"]
    angles = np.degrees(
        np.arctan2(values.matrix[where["rotate"], 3], values.matrix[where["rotate"], 0])
    )
    assert {round(float(a), 3) for a in angles} == {-expected["rotate"], expected["rotate"]}
    for name, column, key in (
        ("shear_x", 1, "shear"),
        ("shear_y", 3, "shear"),
        ("translate_x", 2, "x"),
        ("translate_y", 5, "y"),
    ):
        got = {round(float(v), 4) for v in values.matrix[where[name], column]}
        assert got == {-expected[key], expected[key]}, name
    if text.startswith("torchvision"):
        for name in set(where) - {"invert", "solarize_add"}:
            assert near(where[name].mean(), 1 / 14), name
        assert near(1 - sum(hits.mean() for hits in where.values()), 1 / 14)  # identity


def test_erased_boxes_have_timms_areas_and_places():
    box = partial(erasing.draw_box, height=40, width=60, probability=0.25)
    erased, top, left, h, w = jax.device_get(jax.jit(jax.vmap(box))(keys()))
    assert near(erased.mean(), 0.25)
    area, aspect = h * w / 2400, h / w
    assert 0.015 < area.min() < 0.025
    assert 0.32 < area.max() < 0.345
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert abs(np.log(aspect[area < 0.1])).max() < np.log(1 / 0.3) + 0.15  # rounding
    assert np.log(aspect[area < 0.1]).mean() == pytest.approx(0, abs=0.03)
    assert (
        (top >= 0) & (top + h <= 40) & (left >= 0) & (left + w <= 60) & (h < 40) & (w < 60)
    ).all()
    assert (top / (40 - h)).mean() == pytest.approx(0.5, abs=0.01)


def test_erased_pixels_are_normal_after_the_models_normalisation_and_others_untouched():
    images = np.full((400, 16, 16, 3), 0.5, np.float32)
    erase = jax.jit(partial(erasing.random_erasing, probability=0.5, mean=MEAN, std=STD))
    out = np.asarray(erase(keys(400), images))
    changed = (out != images).any(-1)
    assert 0.35 < changed.any((1, 2)).mean() < 0.65
    for image in changed[changed.any((1, 2))]:
        rows, columns = image.any(1), image.any(0)
        assert image.sum() == rows.sum() * columns.sum()  # one full rectangle
    normalised = (out[changed] - MEAN) / STD
    np.testing.assert_allclose(normalised.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(normalised.std(0), 1, atol=0.05)


def draw_mixes(**settings):
    settings = {
        "mixup": 0.5,
        "cutmix": 1.0,
        "probability": 1.0,
        "switch_probability": 0.5,
    } | settings
    shares, weights = jax.device_get(
        jax.jit(jax.vmap(lambda key: mixing.draw(key, H, W, **settings)))(keys(4000))
    )
    return shares, weights


def test_mixing_draws_by_timms_definition():
    shares, weights = draw_mixes(probability=0.8, switch_probability=0.25)
    flat = shares.reshape(len(shares), -1)
    binary = np.isin(flat, (0, 1)).all(1)
    mixup, untouched = ~binary, (flat == 0).all(1) & (weights == 1)
    # the label's weight is the image's share
    np.testing.assert_allclose(flat.mean(1), 1 - weights, atol=1e-5)
    assert (np.ptp(flat[mixup], axis=1) == 0).all()
    # Beta(0.5, 0.5) occasionally rounds to 0 or 1; a box may be empty.
    assert mixup.mean() == pytest.approx(0.8 * 0.75, abs=0.05)
    assert untouched.mean() == pytest.approx(0.2 + 0.8 * 0.25 * 0.02, abs=0.05)
    assert weights[mixup].mean() == pytest.approx(0.5, abs=0.03)
    assert weights[mixup].var() == pytest.approx(0.125, abs=0.01)  # of Beta(0.5, 0.5)
    boxes = shares[binary & ~untouched] > 0
    for box in boxes[:100]:
        assert box.sum() == box.any(1).sum() * box.any(0).sum()
    assert (boxes[:, 0, 0].mean(), boxes[:, H // 2, W // 2].mean()) == (
        pytest.approx(0.22, abs=0.06),
        pytest.approx(0.45, abs=0.08),
    )


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixup_or_cutmix_alone(name, monkeypatch):
    drawn_with = []

    def beta(key, a, b):
        drawn_with.extend([float(a), float(b)])
        return jnp.float32(0.36)

    monkeypatch.setattr(jax.random, "beta", beta)
    settings = {
        "mixup": 0.0,
        "cutmix": 0.0,
        "probability": 1.0,
        "switch_probability": 0.5,
        name: 0.7,
    }
    for i in range(4):
        share, weight = mixing.draw(jax.random.key(i), 10, 20, **settings)
        if name == "mixup":
            np.testing.assert_allclose(share, 1 - 0.36, rtol=1e-6)
            assert float(weight) == pytest.approx(0.36)
        else:  # the box has 0.8 of either side unless an edge crops it
            assert np.isin(share, (0, 1)).all()
            assert np.asarray(share).any(1).sum() <= 8
            assert np.asarray(share).any(0).sum() <= 16
            assert float(weight) == pytest.approx(1 - np.asarray(share).mean())
    assert set(np.round(drawn_with, 6)) == {0.7}


def test_a_mixed_batch_has_timms_images_and_targets():
    images = np.random.default_rng(0).random((6, H, W, 3), np.float32)
    labels = np.array([0, 1, 2, 3, 4, 4], np.int32)
    arguments = {"mixup": 1.0, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5}
    mix = jax.jit(partial(mixing.mix, **arguments))
    draw = jax.jit(partial(mixing.draw, height=H, width=W, **arguments))
    logits = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    seen = set()
    for i in range(8):
        key = jax.random.key(i)
        share, weight = jax.device_get(draw(key))
        out = jax.device_get(mix(key, {"image": images, "label": labels}))
        seen.add(bool(np.isin(share, (0, 1)).all()))
        expected = images * (1 - share[..., None]) + images[::-1] * share[..., None]
        np.testing.assert_allclose(out["image"], expected, atol=1e-6)
        # timm's mixup_target: both labels smoothed, then mixed.
        off = 0.1 / 5
        own, partner = (np.full((6, 5), off) + np.eye(5)[x] * 0.9 for x in (labels, labels[::-1]))
        target = weight * own + (1 - weight) * partner
        log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        metrics = tasks.classification_metrics(logits, out, 0.1)
        np.testing.assert_allclose(metrics["loss"], -(target * log_softmax).sum(-1), rtol=1e-5)
        dominant = labels if weight >= 0.5 else labels[::-1]
        np.testing.assert_array_equal(metrics["accuracy"], logits.argmax(-1) == dominant)
    assert seen == {False, True}


def test_color_jitter_blends_in_a_random_order():
    images = np.random.default_rng(0).integers(60, 190, (300, 6, 6, 3), np.uint8)
    out = np.asarray(jax.jit(enhance.color_jitter, static_argnums=2)(keys(300), images, 0.2))
    ratio = out.mean((1, 2, 3)) / images.mean((1, 2, 3))  # what brightness leaves in the mean
    assert 0.78 < ratio.min() < 0.85
    assert 1.15 < ratio.max() < 1.22
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    spread = out.std((1, 2, 3)) / images.std((1, 2, 3)) / ratio
    assert spread.min() < 0.85
    assert spread.max() > 1.1
    gray = np.repeat(images[..., :1], 3, -1)
    out = np.asarray(jax.jit(enhance.color_jitter, static_argnums=2)(keys(300), gray, 0.2))
    assert np.ptp(out.astype(int), axis=-1).max() <= 1  # gray stays gray


def test_resized_crops_have_torchvisions_areas_and_places():
    box = partial(crops.draw_box, height=40, width=60, scale=0.3, aspect=4 / 3)
    top, left, h, w = jax.device_get(jax.jit(jax.vmap(box))(keys()))
    assert ((top >= 0) & (top + h <= 40) & (left >= 0) & (left + w <= 60)).all()
    area, whole = h * w / 2400, (h == 40) & (w == 60)
    assert 0.28 < area.min() < 0.32
    assert area[~whole].max() <= 1
    inner = (area < 0.5) & ~whole  # where every aspect ratio fits
    assert np.log((w / h)[inner]).mean() == pytest.approx(0, abs=0.02)
    assert abs(np.log((w / h)[inner])).max() < np.log(4 / 3) + 0.1
    assert (left / np.maximum(60 - w, 1))[inner].mean() == pytest.approx(0.5, abs=0.02)
