"""ImageNet configs against the recipes in their docstrings; test_configs.py checks all configs."""

import pytest

from randmix import config as configs
from randmix.training import runs


def test_the_convmixer():
    convmixer = runs.assemble(configs.recipe("convmixer_imagenet"))
    # The closed form, with biases: stem, 16 blocks of a depthwise and a pointwise convolution,
    # norms, classifier.
    stem, norm, head = 7 * 7 * 3 * 512 + 512, 2 * 512, 512 * 1000 + 1000
    block = 8 * 8 * 512 + 512 + 512 * 512 + 512 + 2 * norm
    assert (
        convmixer.record.summary.trainable + convmixer.record.summary.frozen
        == stem + norm + 16 * block + head
    )
    assert (convmixer.loop.steps_per_epoch, convmixer.loop.total_steps) == (2001, 300_150)
    assert convmixer.data.dataset.image_shape == (224, 224, 3)
    assert convmixer.step.augmentation.crop_scale == 1.0  # it is cropped where it is decoded
    assert convmixer.step.augmentation.mixup == 0.5
    assert convmixer.data.reading.interpolation == "antialias_random"


def test_the_resnet():
    resnet = runs.assemble(configs.recipe("resnet_imagenet"))
    assert resnet.loop.steps_per_epoch == 5004
    assert resnet.data.reading.interpolation == "antialias"
    rates = [float(resnet.loop.schedule(epoch * 5004)) for epoch in (0, 29, 31, 59, 61, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("variant", "millions"), [("", 11.9), (":vit_tiny", 5.7), (":mixer_s16", 18.5)]
)
def test_the_metaformers(variant, millions):
    metaformer = runs.assemble(configs.recipe(f"metaformer_imagenet{variant}"))
    summary = metaformer.record.summary
    assert round((summary.trainable + summary.frozen) / 1e6, 1) == millions  # as published
    assert metaformer.loop.steps_per_epoch == 1251
    rates = [float(metaformer.loop.schedule(epoch * 1251)) for epoch in (0, 2.5, 5, 152.5, 300)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0], abs=1e-9)
