"""Titles of data sets, attacks and models in the report."""

from collections.abc import Mapping
from typing import Any

DATA = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet2012": "ImageNet",
}
ATTACKS = {"fgsm": "FGSM", "pgd2": "PGD-2", "strong": "strong", "noise": "random noise"}
MODELS = {"resnet": "separable ResNet", "convmixer": "ConvMixer"}


def title_of(data_set: str) -> str:
    """A data set's title."""
    return DATA.get(data_set, data_set)


def title_of_model(settings: Mapping[str, Any]) -> str:
    """A model's family, with the number m of filters per channel where it has several."""
    m = settings.get("model.multiplier")
    return MODELS[settings["model.name"]] + (f", m = {m}" if m else "")
