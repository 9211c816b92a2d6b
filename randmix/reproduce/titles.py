"""Titles of data sets, models, modes, filters and attacks in the report, in its order."""

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
MODES = {"full": "Full", "chans": "Chans", "space": "Space", "floor": "Floor"}
FILTERS = {
    "random": "Different",
    "same": "Same",
    "box": "Box",
    "identity": "Identity",
    "delta": "Impulses",
    "dct": "DCT",
    "gaussian": "Gaussian covariance",
    "gaussian8": "Gaussian derivatives",
}
BANKS = {name: FILTERS[name] for name in ("random", "same", "box", "identity")}  # the paper's
MODELS = {"resnet": "separable ResNet", "convmixer": "ConvMixer", "metaformer": "MetaFormer"}

_WITH_A_WINDOW = ("depthwise", "pooling", "shift")  # of a MetaFormer's mixers


def known_name(data_set: str) -> str:
    """The name in the catalog of the images of a data set, however they were prepared.

    >>> known_name("imagefolder/cifar10"), known_name("tfds/cifar10:3.0.2"), known_name("arrays/x")
    ('cifar10', 'cifar10', 'arrays/x')
    """
    kind, _, name = data_set.partition("/")
    return name.partition(":")[0] if kind in ("imagefolder", "tfds") and name else data_set


def title_of(data_set: str) -> str:
    """A data set's title.

    >>> title_of("tfds/cifar10"), title_of("imagefolder/cifar10"), title_of("imagefolder/pets")
    ('CIFAR-10', 'CIFAR-10 (JPEG)', 'pets (images)')
    """
    kind, _, name = data_set.partition("/")
    known = known_name(data_set)
    if kind == "imagefolder" and name:
        # Neither a prepared folder nor a record says whether its files were JPEGs or PNGs. A title
        # that warns of JPEG in vain is a smaller mistake than one that hides changed pixels.
        return f"{DATA[known]} (JPEG)" if known in DATA else f"{name} (images)"
    if kind in ("arrays", "imagenet2012") and name:
        return name
    return DATA.get(known, known)


def title_of_model(settings: Mapping[str, Any]) -> str:
    """A model's family, with its mixer or its number m of filters per channel if it has a choice.

    >>> title_of_model({"model.name": "metaformer", "model.mixer": "token_mlp"})
    'MetaFormer, token MLP'
    """
    m, mixer = settings.get("model.multiplier"), settings.get("model.mixer")
    words = [MODELS[settings["model.name"]]]
    words += [f"m = {m}"] if m else []
    words += [title_of_mixer(mixer)] if mixer else []
    return ", ".join(words)


def title_of_mixer(name: str) -> str:
    """The title of a MetaFormer's mixer of tokens."""
    return {"token_mlp": "token MLP", "random": "random matrix"}.get(name, name)


def title_of_filters(name: str) -> str:
    """The title of a filter bank, or of filters that a run took from another one."""
    return "Learned elsewhere" if name.startswith("from=") else FILTERS.get(name, name)


def has_window(settings: Mapping[str, Any]) -> bool:
    """Whether a model's mixer has a kernel size that its function depends on.

    >>> has_window({"model.mixer": "attention", "model.kernel_size": 3})
    False
    """
    return settings.get("model.mixer", "depthwise") in _WITH_A_WINDOW


def size_of_model(settings: Mapping[str, Any], leave_out: str = "") -> str:
    """A model's width, depth and kernel size, as far as they are known, without ``leave_out``.

    A mixer whose function has no window has no kernel size, though its config may give one.

    >>> size_of_model({"model.width": 64, "model.kernel_size": 5})
    'width 64, k 5'
    """
    names = {"model.width": "width", "model.depth": "depth"}
    if has_window(settings):
        names["model.kernel_size"] = "k"
    return ", ".join(
        f"{name} {settings[key]}"
        for key, name in names.items()
        if key in settings and key != leave_out
    )
