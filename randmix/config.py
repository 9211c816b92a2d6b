"""Every key that a config has, with its default, in one visible place; and what makes two configs the same run.

A config file defines ``get_config()``, which starts from ``default()`` and sets what differs. The dict is
locked and typed: a key that isn't here is an error, in a file as on the command line.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from randmix.errors import UserError, check_choice

# Keys that change what is shown or where data lie, never what is learned.
DISPLAY_KEYS = frozenset(
    {
        "log_every",
        "eval_every",
        "checkpoint_every",
        "tensorboard",
        "wandb_project",
        "data.data_dir",
        "data.workers",
        "defense.pgd_steps",
        "defense.pgd_examples",
    }
)


def default(model: str = "convmixer") -> ConfigDict:
    """Returns a locked config with every key of a run, for one model.

    Args:
        model: a key of ``MODEL_KEYS``, whose keys ``config.model`` then holds.
    """
    check_choice("config.model.name", model, MODEL_KEYS)
    return ConfigDict(
        {
            # One seed decides the initial weights, the order of the data and every augmentation.
            "seed": 0,
            # What is trained: `groups` over `train` over `mode`, the first that is set.
            "mode": "chans",  # full | chans | space
            "train": config_dict.placeholder(
                str
            ),  # a selector, "~role('spatial')"; see randmix/masks
            "groups": config_dict.placeholder(
                tuple
            ),  # (label, selector, settings), ...; see randmix/groups.py
            "task": "classification",  # classification | unshuffling
            # unshuffling: which pixels change places. Not the seed, so that runs of several seeds have one task.
            "permutation_seed": 0,
            "model": {"name": model} | MODEL_KEYS[model],
            "data": {
                "name": "digits",  # None in the workdir of a converted model without a data set
                "data_dir": config_dict.placeholder(
                    str
                ),  # TFDS's own default: ~/tensorflow_datasets
                "subset": 1.0,  # the share of the training set that is used, from its beginning
                # The share of those that is held out, from their end: the checkpoint that is best on them is kept too.
                "validation": 0.0,
                # Augmentation of training images, in this order; see randmix/data/augment.
                "crop_padding": 0,  # pixels of zero padding for a random crop; 0: no crop
                "crop_scale": 1.0,  # random resized crop: the least share of the area; 1: no such crop
                "crop_aspect": 4 / 3,  # random resized crop: the largest aspect ratio; 1: square
                "flip": False,  # random horizontal flip
                # "": none | timm's "rand-m9-mstd0.5-inc1", two operations or n3 | "torchvision-n2-m12"
                "randaugment": "",
                "color_jitter": 0.0,  # brightness, contrast, saturation by 1 - this to 1 + this; 0: none
                # Mixing changes labels too; training accuracy then counts the label that has more of the image.
                "mixup": 0.0,  # alpha; 0: none
                "cutmix": 0.0,  # alpha; 0: none
                "mix_probability": 1.0,  # that a batch is mixed
                "mix_switch_probability": 0.5,  # that it is by cutmix, where both alphas are set
                "random_erasing": 0.0,  # probability that a rectangle of the image becomes noise
                # Photographs that are read while training goes on: imagenet2012, imagefolder/NAME.
                "image_size": 224,  # pixels a side that the model is shown
                "eval_crop": 0.96,  # the share of the shorter side that evaluation sees
                "decoder": "auto",  # auto | simplejpeg | pillow; auto: simplejpeg where it is installed
                "workers": 0,  # threads that decode, on each host; 0: one a core
                "corrupt": "fatal",  # fatal | skip: what a damaged image is; each is named
            },
            "batch_size": 128,  # global: over all devices of all hosts
            "epochs": 10.0,
            "steps": config_dict.placeholder(int),  # overrides epochs
            "label_smoothing": 0.0,
            "defense": {  # training on FGSM samples (section 4.3.1)
                "epsilon": 0.0,  # how far each pixel moves, in 1/255; 0: no such training
                "share": 1.0,  # of every batch
                # Such training may learn to withstand FGSM and nothing else, so that each evaluation has PGD too.
                "pgd_steps": 10,
                "pgd_examples": 512,  # the first ones of the test split
            },
            "optimizer": {
                "name": "adamw",  # adamw | sgd
                "learning_rate": 0.01,  # at the schedule's height
                "weight_decay": 0.0,  # on kernels only
                "clip_norm": 0.0,  # over all trainable gradients at once; 0: no clipping
                "b1": 0.9,  # adamw
                "b2": 0.999,  # adamw
                "eps": 1e-8,  # adamw
                "momentum": 0.9,  # sgd
                "nesterov": True,  # sgd
            },
            "schedule": {
                "name": "linear",  # linear | step | cosine | constant
                # linear: (share of the run, multiple of learning_rate), straight lines between.
                # These are the points of the ConvMixer repository.
                "points": ((0.0, 0.0), (0.4, 1.0), (0.8, 0.05), (1.0, 0.0)),
                "boundaries": (0.5, 0.75),  # step: shares of the run after which it is multiplied
                "factor": 0.1,  # step
                "warmup": 0.0,  # cosine: the share of the run that rises linearly from zero
            },
            "log_every": 50,  # steps
            "eval_every": 500,  # steps; the end is always evaluated
            "checkpoint_every": 500,  # steps; the end is always saved
            "tensorboard": True,  # events in the workdir, for `tensorboard --logdir=runs`
            "wandb_project": config_dict.placeholder(
                str
            ),  # also log to Weights & Biases, under this project
            "precision": "float32",  # float32 | bfloat16: the arithmetic; parameters stay float32
        }
    ).lock()


# What every model has.
_MODEL_KEYS = {
    "filters": "random",  # random | same | box | identity | smoothed: what the depthwise filters start from
    "smoothing_index": 0.0,  # smoothed: how strongly
    "smoothing_keep_norm": True,  # smoothed: keep each filter's L2 norm
    "depthwise_method": "auto",  # auto | grouped | shift_sum; see randmix/ops/depthwise.py
    "remat": False,  # compute each block again on the way back: less memory, more time
    "scan": False,  # one scan over blocks that are equal: compiles in a time that depth doesn't change
    "mean": (),  # normalisation, a number a channel, images in [0, 1]; (): none
    "std": (),
}

MODEL_KEYS = {
    "convmixer": {
        "width": 64,  # channels
        "depth": 4,  # blocks
        "kernel_size": 5,  # of the depthwise filters
        "patch_size": 1,  # side and stride of the stem's patches
        "activation": "gelu",  # gelu | relu
        **_MODEL_KEYS,
    },
    # The published models: their names fix the rest.
    "convmixer_1536_20": _MODEL_KEYS,
    "convmixer_768_32": _MODEL_KEYS,
    "convmixer_1024_20": _MODEL_KEYS,
    "resnet": {
        "width": 16,  # channels of the first stage
        "depth": 3,  # blocks a stage
        "kernel_size": 3,  # of the depthwise filters, but for the imagenet stem's
        "multiplier": 9,  # depthwise filters a channel
        "between": "none",  # none | relu | bn | bn_relu: what stands between depthwise and pointwise
        "stem": "cifar",  # cifar: 3 stages | imagenet: 7 x 7 of stride 2, max pool, 4 stages
        **_MODEL_KEYS,
    },
}


def vary(config: ConfigDict, variant: str, variants: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """Makes a config one of its variants, which ``--config=configs/NAME.py:VARIANT`` asks for.

    Args:
        config: as it is without a variant; changed and returned.
        variant: a key of ``variants``.
        variants: name -> what differs, with dotted keys.

    Raises:
        UserError: there is no such variant; it names the nearest.
    """
    check_choice("variant", variant, variants)
    config.update_from_flattened_dict(variants[variant])
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns ``{"model.width": 64, ...}``, tuples as lists, as JSON would give them back."""
    flat = {}
    for key, value in json.loads(to_json(config)).items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def to_json(config: Mapping[str, Any]) -> str:
    """The config as JSON text, keys sorted."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The config that ``to_json`` wrote: defaults for the model's family, then the saved values."""
    saved = json.loads(text)
    config = default(saved["model"]["name"])
    with config.ignore_type():  # placeholders: None or a value
        config.update(_lists_to_tuples(saved))
    return config


def fingerprint(config: Mapping[str, Any]) -> str:
    """Eight hex digits that name the run: equal for configs that differ in display keys only."""
    text = json.dumps(
        {k: v for k, v in flatten(config).items() if k not in DISPLAY_KEYS}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists ``"key: old -> new"`` for every key in which two configs are different runs."""
    old, new = flatten(old), flatten(new)
    keys = sorted((old.keys() | new.keys()) - DISPLAY_KEYS)
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]


def check(config: ConfigDict) -> None:
    """Raises a UserError for a value that no run could have; names are checked where they are looked up."""
    for key in ("batch_size", "log_every", "eval_every", "checkpoint_every"):
        _check_range(f"config.{key}", config[key], config[key] >= 1, "1 or more")
    if config.steps is not None:
        _check_range("config.steps", config.steps, config.steps >= 1, "1 or more")
    elif not config.epochs > 0:
        _check_range("config.epochs", config.epochs, False, "more than 0")
    for key in ("seed", "permutation_seed"):
        _check_range(f"config.{key}", config[key], 0 <= config[key] < 2**32, "0 to 4294967295")
    _check_range(
        "config.data.subset",
        config.data.subset,
        0 < config.data.subset <= 1,
        "more than 0, up to 1",
    )
    validation = config.data.validation
    _check_range(
        "config.data.validation", validation, 0 <= validation < 1, "0 up to, not including, 1"
    )
    _check_reading(config.data)
    _check_range(
        "config.label_smoothing",
        config.label_smoothing,
        0 <= config.label_smoothing < 1,
        "0 up to, not including, 1",
    )
    _check_defense(config)
    if config.task == "unshuffling":
        _check_range(
            "config.label_smoothing",
            config.label_smoothing,
            config.label_smoothing == 0,
            "0 with the task unshuffling",
        )
        _check_no_mixing(config, "the task unshuffling")
    if config.defense.epsilon:
        _check_no_mixing(config, "config.defense.epsilon")
    check_choice("config.precision", config.precision, ("float32", "bfloat16"))


def _check_reading(data: ConfigDict) -> None:
    _check_range("config.data.image_size", data.image_size, data.image_size >= 1, "1 or more")
    _check_range(
        "config.data.eval_crop", data.eval_crop, 0 < data.eval_crop <= 1, "more than 0, up to 1"
    )
    _check_range("config.data.workers", data.workers, data.workers >= 0, "0 or more")
    check_choice("config.data.decoder", data.decoder, ("auto", "simplejpeg", "pillow"))
    check_choice("config.data.corrupt", data.corrupt, ("fatal", "skip"))


def _check_defense(config: ConfigDict) -> None:
    epsilon, share = config.defense.epsilon, config.defense.share
    _check_range("config.defense.epsilon", epsilon, 0 <= epsilon <= 255, "0 to 255 (in 1/255)")
    _check_range("config.defense.share", share, 0 < share <= 1, "more than 0, up to 1")
    for key in ("pgd_steps", "pgd_examples"):
        _check_range(
            f"config.defense.{key}", config.defense[key], config.defense[key] >= 1, "1 or more"
        )
    if config.task != "classification":
        _check_range(
            "config.defense.epsilon", epsilon, epsilon == 0, f"0 with the task {config.task}"
        )


def _check_no_mixing(config: ConfigDict, other: str) -> None:
    """Refuses what gives an image two labels or values outside of [0, 1]."""
    for key in ("mixup", "cutmix", "random_erasing"):
        _check_range(
            f"config.data.{key}", config.data[key], config.data[key] == 0, f"0 with {other}"
        )


def total_steps(config: ConfigDict, train_examples: int) -> int:
    """The number of training steps: ``steps``, else ``epochs`` times the whole batches in an epoch."""
    per_epoch = train_examples // config.batch_size
    if not per_epoch:
        raise UserError(
            f"config.batch_size: got {config.batch_size}, allowed up to the {train_examples} training examples; "
            "set a smaller one"
        )
    return config.steps if config.steps is not None else max(1, round(config.epochs * per_epoch))


def _check_range(key: str, got: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise UserError(f"{key}: got {got!r}, allowed {allowed}")


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists_to_tuples(v) for k, v in value.items()}
    return tuple(_lists_to_tuples(v) for v in value) if isinstance(value, list) else value
