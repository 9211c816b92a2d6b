"""Every config key with its default, and the rule by which two configs describe the same run.

A config file defines ``get_config()``, which starts from ``default()`` and sets what differs. The
dict is locked and typed: an unknown key is an error, in a file as on the command line.
``randmix/ranges.py`` has the exact range of every number. Most of this file is the table of keys,
hence its length.
"""

import functools
import hashlib
import json
import re
import runpy
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from randmix import parts, ranges
from randmix.errors import UserError, check_choice, did_you_mean

# The files of configs/: a wheel has them inside the package, a checkout beside it.
_SHIPPED = Path(__file__).parent / "configs"
RECIPES = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[1] / "configs"


class Config(ConfigDict):
    """A run's config: locked and typed, with the keys of ``default``.

    The keys of a group keep the order in which they were given, which decides between ``roles``.
    """

    def __init__(self, initial_dictionary: Any = None, type_safe: bool = True):
        super().__init__(initial_dictionary, type_safe=type_safe, sort_keys=False)


# Keys that change what is shown or where data lie, but never what is learned.
DISPLAY_KEYS = frozenset(
    {
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "tensorboard",
        "wandb_project",
        "code_dir",
        "data.data_dir",
        "data.workers",
        "defense.pgd_steps",
        "defense.pgd_examples",
    }
)

# Keys that a run may leave to its data or its machine, which ``training.runs.resolve`` asks.
LEFT_OPEN = (
    "data.in_memory",
    "data.image_size",
    "data.decoder",
    "data.interpolation",
    "model.mean",
    "model.std",
)


class Key(NamedTuple):
    """A config key.

    Attributes:
        default: its value in ``default()``.
        meaning: what it means and which values it takes.
        kind: the type of its values, where the default is None.
    """

    default: Any
    meaning: str
    kind: type | None = None


# The keys of every run but those of its model; an inner dict is a group.
KEYS = {
    "seed": Key(0, "Decides initial weights, data order and augmentation, 0 to 2**32 - 1."),
    "mode": Key(
        "chans",
        '"full" trains everything, "chans" all but spatial mixing (depthwise filters, patch '
        'embedding), "space" all but channel mixing, "floor" only normalisation and head. `train` '
        "and `groups` override it.",
    ),
    "train": Key(
        None,
        "Selector of the trained parameters, such as \"~role('spatial')\"; see docs/masks.md.",
        kind=str,
    ),
    "groups": Key(None, "Groups to train, (label, selector, settings); see docs/masks.md.", tuple),
    "task": Key(
        "classification",
        '"classification"; "unshuffling": restore moved pixels; or MODULE:FUNCTION, a loss of your '
        "own, see docs/training.md.",
    ),
    "permutation_seed": Key(
        0,
        "Seed of unshuffling's pixel permutation, 0 to 2**32 - 1. It is separate from `seed` so "
        "that runs with several seeds share one task.",
    ),
    "data": {
        "name": Key(
            "digits",
            "The data set: digits, mnist, fashion_mnist, cifar10, cifar100, imagenet2012, "
            "imagefolder/NAME, imagenet2012/NAME, tfds/NAME, arrays/NAME or MODULE:FUNCTION; see "
            "docs/data.md. None only for converted weights.",
        ),
        "data_dir": Key(
            None,
            "Folder of the prepared data sets. Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
            kind=str,
        ),
        "in_memory": Key(
            "auto",
            'For imagefolder/, imagenet2012/NAME and tfds/ sets whose images have one shape: "on" '
            'holds them in memory at that size, "off" decodes and crops them during training, '
            '"auto" holds them if they are small and few.',
        ),
        "subset": Key(1.0, "Fraction of the training set to use, from its start, in (0, 1]."),
        "validation": Key(
            0.0,
            "Fraction of that subset to hold out, from its end, in [0, 1). The checkpoint that "
            "scores best on the held-out examples is also kept.",
        ),
        # Augmentation of training images, in this order; see randmix/data/augment.
        "crop_padding": Key(0, "Zero padding of a random crop, in pixels; 0 disables the crop."),
        "crop_scale": Key(
            1.0,
            "Smallest area of a random resized crop, as a fraction of the image in (0, 1]; 1 "
            "disables the crop. Photographs are then cropped as in evaluation.",
        ),
        "crop_aspect": Key(4 / 3, "Largest aspect ratio of that crop, 1 (square) or more."),
        "flip": Key(False, "Flip images horizontally with probability 1/2."),
        "randaugment": Key(
            "",
            'RandAugment policy: timm\'s, such as "rand-m9-mstd0.5-inc1" (two operations, or n3 '
            'for three), or "torchvision-n2-m12"; "" disables it.',
        ),
        "color_jitter": Key(
            0.0,
            "Brightness, contrast and saturation factors are drawn from [1 - this, 1 + this]; 0 "
            "disables it.",
        ),
        "mixup": Key(
            0.0,
            "Alpha of mixup's beta distribution, 0 or more; 0 disables mixup. Mixing also changes "
            "labels; training accuracy then counts the label of the image that contributes more.",
        ),
        "cutmix": Key(0.0, "Alpha of CutMix's beta distribution, 0 or more; 0 disables CutMix."),
        "mix_probability": Key(1.0, "Probability that a batch is mixed, 0 to 1."),
        "mix_switch_probability": Key(0.5, "Probability of CutMix if both alphas are set, 0 to 1."),
        "random_erasing": Key(0.0, "Probability that a rectangle of an image is noise, 0 to 1."),
        # The rest applies to photographs, which are decoded during training.
        "image_size": Key(
            None, "Streamed images: side of the model's input, in pixels. Default: 224.", int
        ),
        "eval_crop": Key(
            0.96,
            "Streamed images: fraction of an image's shorter side that evaluation crops to, in "
            "(0, 1].",
        ),
        "interpolation": Key(
            "fast",
            'Streamed images: resizing of random crops, "fast" (bilinear), "antialias" (bilinear, '
            "torchvision's) or \"antialias_random\" (bilinear or bicubic, timm's).",
        ),
        "decoder": Key(
            "auto",
            'Streamed images: decoder for random crops, "simplejpeg", "pillow", or "auto", the '
            "faster one.",
        ),
        "workers": Key(0, "Streamed images: decoding threads per host; 0 means one per core."),
        "corrupt": Key(
            "fatal", 'Streamed images: "fatal" stops at a damaged one, "skip" leaves it out.'
        ),
    },
    "batch_size": Key(128, "Global batch size, over all devices of all hosts, 1 or more."),
    "accumulate": Key(
        1,
        "Number of parts into which a batch is divided, whose gradients are averaged before the "
        "step, 1 or more: less memory for the same batch.",
    ),
    "epochs": Key(10.0, "Length of the run in epochs, more than 0; ignored if `steps` is set."),
    "steps": Key(None, "Length of the run in steps, 1 or more; overrides `epochs`.", int),
    "label_smoothing": Key(0.0, "Share of each target that all classes get evenly, in [0, 1)."),
    "ema": Key(
        0.0,
        "Decay of an exponential moving average of the trained weights, per step, in [0, 1); 0 "
        "keeps none. The average is evaluated beside the weights themselves.",
    ),
    # Adversarial training on FGSM samples (paper, section 4.3.1).
    "defense": {
        "epsilon": Key(
            0.0,
            "Adversarial training on FGSM samples: change of each pixel, in 1/255, 0 to 255; "
            "0 disables it.",
        ),
        "share": Key(1.0, "Fraction of each batch that is attacked, in (0, 1]."),
        "pgd_steps": Key(
            10,
            "Steps of the PGD attack that each evaluation of such a run also measures, as FGSM "
            "training may yield resistance to FGSM alone, 1 or more.",
        ),
        "pgd_examples": Key(
            512,
            "Number of examples for that PGD, from the start of the test split, 1 or more.",
        ),
    },
    "optimizer": {
        "name": Key(
            "adamw",
            '"adamw" or "sgd"; or any optimizer of optax, such as "lion", or MODULE:FUNCTION, with '
            "its arguments as the other keys; see docs/training.md.",
        ),
        "learning_rate": Key(0.01, "Peak learning rate of the schedule."),
        "weight_decay": Key(0.0, "Weight decay of kernels (not of biases or normalisation)."),
        "clip_norm": Key(0.0, "Largest global norm of the trained gradients; 0 disables clipping."),
        "b1": Key(0.9, "adamw: decay rate of the first moment."),
        "b2": Key(0.999, "adamw: decay rate of the second moment."),
        "eps": Key(1e-8, "adamw: term added to the denominator, for numerical stability."),
        "momentum": Key(0.9, "sgd: momentum; 0 disables it."),
        "nesterov": Key(True, "sgd: Nesterov's momentum."),
    },
    "schedule": {
        "name": Key(
            "linear",
            'Learning-rate schedule: "linear", "step", "cosine" or "constant"; or a schedule of '
            "optax or MODULE:FUNCTION, with its arguments as the other keys.",
        ),
        "points": Key(
            ((0.0, 0.0), (0.4, 1.0), (0.8, 0.05), (1.0, 0.0)),
            "linear: (fraction of the run, multiple of learning_rate) points, interpolated "
            "linearly. The default is the ConvMixer repository's.",
        ),
        "boundaries": Key(
            (0.5, 0.75),
            "step: fractions of the run after which the rate is multiplied by `factor`.",
        ),
        "factor": Key(0.1, "step: the multiplier at each boundary."),
        "warmup": Key(0.0, "cosine: fraction of the run with linear warm-up from zero, 0 to 1."),
    },
    "log_every": Key(50, "Steps between log lines, 1 or more."),
    "eval_every": Key(500, "Steps between evaluations, 1 or more; the last step is always one."),
    "checkpoint_every": Key(
        500, "Steps between checkpoints, 1 or more; the last step is always one."
    ),
    "keep_checkpoints": Key(
        2, "Number of checkpoints to keep, the newest ones, 2 or more: one may be damaged."
    ),
    "tensorboard": Key(True, "Write TensorBoard events to the workdir."),
    "wandb_project": Key(None, "Weights & Biases project to log to as well.", str),
    "precision": Key("float32", 'Arithmetic: "float32" or "bfloat16"; parameters stay float32.'),
    "roles": Key(
        {},
        "For a model of your own: the role of each parameter, {role: selector}, of which the first "
        "that selects it counts; see docs/models.md.",
    ),
    "user": Key({}, "Whatever your own parts need; functions with an argument `user` get it."),
    "code_dir": Key(
        None,
        "Folder with the modules of your own parts (MODULE:NAME). Default: the config file's.",
        kind=str,
    ),
}

# Groups that name a part, with its keys here that every part has. The other keys of a part of the
# user's own, or of optax's, are its arguments, which ``training.runs`` checks.
PARTS = {
    "model": ("name",),
    "optimizer": ("name", "learning_rate", "clip_norm"),
    "schedule": ("name",),
}
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("linear", "step", "cosine", "constant")

# The keys of every model.
_MODEL_KEYS = {
    "filters": Key(
        "random",
        'Initial depthwise filters: "random", "same", "box", "identity", "delta", "dct", '
        '"gaussian" or "gaussian8", or those of a finished run or of a file of weights, '
        '"from=WORKDIR" or "from=FILE"; see docs/models.md.',
    ),
    "filter_rank": Key(
        None,
        "random, delta, dct: number of independent filters among those of a channel, or of a "
        "ConvMixer's layer, 1 or more. Default: the bank's own.",
        int,
    ),
    "smoothing_index": Key(0.0, "Strength of the smoothing of the initial filters, 0 or more."),
    "smoothing_keep_norm": Key(True, "Keep the L2 norm of each filter in smoothing."),
    "depthwise_method": Key("auto", 'Depthwise algorithm: "auto", "grouped" or "shift_sum".'),
    "remat": Key(False, "Recompute each block in the backward pass: less memory, more time."),
    "scan": Key(False, "Scan over equal blocks, so that compile time doesn't grow with depth."),
    "mean": Key(
        None,
        "Mean to subtract from images in [0, 1], a number per channel; () for none. Default: the "
        "training images'.",
        tuple,
    ),
    "std": Key(
        None,
        "Standard deviation to divide by, a number per channel; () for none. Default: the training "
        "images'.",
        tuple,
    ),
}

_CONVMIXER_KEYS = {
    "smooth_stem": Key(False, "Smooth the initial kernel of the patch stem like the filters."),
    **_MODEL_KEYS,
}

MODEL_KEYS = {
    "convmixer": {
        "width": Key(64, "Number of channels."),
        "depth": Key(4, "Number of blocks."),
        "kernel_size": Key(5, "Side of the depthwise filters, in pixels."),
        "patch_size": Key(1, "Side and stride of the stem's patches, in pixels."),
        "activation": Key("gelu", '"gelu" or "relu".'),
        **_CONVMIXER_KEYS,
    },
    # Published models, whose names fix the remaining keys.
    "convmixer_1536_20": _CONVMIXER_KEYS,
    "convmixer_768_32": _CONVMIXER_KEYS,
    "convmixer_1024_20": _CONVMIXER_KEYS,
    "resnet": {
        "width": Key(16, "Number of channels in the first stage."),
        "depth": Key(3, "Number of blocks per stage."),
        "kernel_size": Key(3, "Side of the depthwise filters, in pixels; the imagenet stem has 7."),
        "multiplier": Key(9, "Number of depthwise filters per channel."),
        "between": Key(
            "none",
            'Layers between depthwise and pointwise: "none", "relu", "bn" or "bn_relu".',
        ),
        "stem": Key(
            "cifar",
            '"cifar" has 3 stages; "imagenet" has a stride-2 7 x 7 stem, max pooling and 4 stages.',
        ),
        **_MODEL_KEYS,
    },
    "metaformer": {
        "mixer": Key(
            "depthwise",
            'Mixer of tokens: "depthwise", "attention", "token_mlp", "random" (a matrix over all '
            'positions), "pooling", "shift" or "identity".',
        ),
        "width": Key(128, "Number of channels, of the first stage if there are four."),
        "depth": Key(6, "Number of blocks; with four stages a multiple of 6."),
        "stages": Key(
            (1,),
            "Width of each stage as a multiple of `width`: (1,) is isotropic; (1, 2, 5, 8) is "
            "PoolFormer-S, whose patches overlap.",
        ),
        "patch_size": Key(4, "Stride of the patches; isotropic, also their side, in pixels."),
        "kernel_size": Key(
            3, "depthwise, pooling, shift: side of the filters or of the window, in pixels."
        ),
        "head_dim": Key(32, "attention: channels of a head; divides the width of each stage."),
        "attention_roles": Key(
            "queries_keys",
            'attention: what of it is spatial mixing, "queries_keys" or "all" of its weights.',
        ),
        "mlp_ratio": Key(4.0, "Hidden units of each block's MLP, per channel."),
        "token_ratio": Key(0.5, "token_mlp: its hidden units, per channel."),
        "norm": Key("layer", '"layer" (LayerNorm), "group" (GroupNorm with one group) or "batch".'),
        "layer_scale": Key(0.0, "Initial value of a learned scale of each branch; 0 for none."),
        "position_embedding": Key(
            None,
            "Initial deviation of a learned embedding that is added to the patches; 0 for none. "
            "Default: 1 with attention, 0 with the other mixers.",
            float,
        ),
        **_MODEL_KEYS,
    },
}


def default(model: str = "convmixer") -> Config:
    """Returns a locked config with every key of a run, for one model.

    Args:
        model: a key of ``MODEL_KEYS``, whose entry becomes ``config.model``, or MODULE:CLASS.

    Raises:
        UserError: an unknown model; the message suggests the nearest name.
    """
    if not parts.is_own(model):
        check_choice("config.model.name", model, [*MODEL_KEYS, "MODULE:CLASS"])
    values = _defaults(KEYS) | {"model": {"name": model, **_defaults(MODEL_KEYS.get(model, {}))}}
    return Config(values).lock()


def complete(config: Config) -> Config:
    """Gives groups that were replaced by a dict the defaults of the keys that they lack; locks all.

    A group such as ``config.optimizer = {"name": "sgd", "momentum": 0.8}`` may lack keys. Those of
    a part of the user's own, or of optax's, are left to the part.

    Args:
        config: the config; modified in place and returned.

    Raises:
        UserError: a key that the group doesn't have; the message suggests the nearest name.
    """
    for name, group in expected(config).items():
        got = config.get(name)
        if not isinstance(group, ConfigDict) or not isinstance(got, ConfigDict):
            continue  # ``check`` says what is wrong with it
        if {*group} <= {*got}:
            continue
        whole = group.copy_and_resolve_references()
        with whole.unlocked(), whole.ignore_type():
            for key, value in got.items():
                if key not in group and not is_open(config, name):
                    model = got.get("name") if name == "model" else None
                    raise _unknown(f"{name}.{key}", group, model)
                whole[key] = value
        with config.ignore_type():
            config[name] = whole
    return config.unlock().lock()  # what was assigned isn't locked, nor would `lock` alone reach it


def set_code_dir(config: Config, folder: str) -> None:
    """Sets ``code_dir`` of a config that names parts of the user's own, unless it has one."""
    names = [config.task, *(config[group].name for group in ("data", *PARTS))]
    if config.code_dir is None and any(map(parts.is_own, names)):
        config.code_dir = folder


def expected(config: Mapping[str, Any]) -> Config:
    """Returns the defaults of a config's keys.

    They are those of ``default`` for its model; but of a part that isn't ours, only the keys that
    every such part has.
    """
    usual = default(_model_name(config))
    for name, common in PARTS.items():
        if is_open(config, name):
            with usual.ignore_type():
                usual[name] = {key: usual[name][key] for key in common}
    return usual.unlock().lock()


def is_open(config: Mapping[str, Any], group: str) -> bool:
    """Whether a group of a config has keys that aren't in ``KEYS``, such as a part's arguments."""
    if group in ("roles", "user"):
        return True
    ours = {"model": MODEL_KEYS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    part = config.get(group)
    if group not in ours or not isinstance(part, Mapping | ConfigDict):
        return False
    return part.get("name", next(iter(ours[group]))) not in ours[group]


def _defaults(keys: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {}
    for name, key in keys.items():
        if not isinstance(key, Key):
            defaults[name] = _defaults(key)
        else:
            defaults[name] = config_dict.placeholder(key.kind) if key.kind else key.default
    return defaults


def describe() -> str:
    """Returns the meaning and default of every key, for ``--help``."""
    lines = ["Keys of a config (default, unless the file sets another):", *_describe(KEYS)]
    for model in ("convmixer", "resnet", "metaformer"):
        lines += ["", f"Keys of a config whose config.model.name is {model}:"]
        lines += _describe(MODEL_KEYS[model], "model.")
    return "\n".join(lines)


def _describe(keys: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, key in keys.items():
        if isinstance(key, Key):
            yield f"  {prefix}{name} ({key.default!r})"
            yield textwrap.fill(key.meaning, 100, initial_indent=6 * " ", subsequent_indent=6 * " ")
        else:
            yield from _describe(key, f"{prefix}{name}.")


def vary(config: Config, variant: str, variants: Mapping[str, Mapping[str, Any]]) -> Config:
    """Applies a config's variants, as selected by ``--config=configs/NAME.py:VARIANT-VARIANT``.

    Args:
        config: the config without a variant; modified in place and returned.
        variant: keys of ``variants`` joined by "-", of which later ones win; "" changes nothing.
        variants: name -> the values that differ, with dotted keys.

    Raises:
        UserError: an unknown variant; the message suggests the nearest name.
    """
    for name in variant.split("-") if variant else ():
        check_choice("variant", name, variants)
        config.update_from_flattened_dict(variants[name])
    return config


def recipe(name: str) -> Config:
    """Returns a config of the files in ``RECIPES``, such as ``"convmixer_imagenet:laptop"``.

    Args:
        name: a file's name without ".py", and a variant of it after a colon, if any.

    Raises:
        UserError: an unknown file or variant; the message suggests the nearest name.
    """
    file, _, variant = name.partition(":")
    check_choice("recipe", file, sorted(path.stem for path in RECIPES.glob("*.py")))
    return runpy.run_path(str(RECIPES / f"{file}.py"))["get_config"](variant)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns ``{"model.width": 64, ...}``, with tuples as lists, as in JSON."""
    flat = {}
    for key, value in json.loads(to_json(config)).items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def to_json(config: Mapping[str, Any]) -> str:
    """Returns the config as JSON text with sorted keys.

    Raises:
        UserError: a value that JSON can't hold, such as a NumPy number inside a tuple.
    """
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    if isinstance(roles := plain.get("roles"), Mapping) and roles:
        plain = {**plain, "roles": [*roles.items()]}  # in their order
    return json.dumps(plain, indent=2, sort_keys=True, default=_refuse)


def _refuse(value: Any) -> None:
    raise UserError(
        f"config: got {value!r} of type {type(value).__name__}, allowed are Python's own numbers, "
        "texts, tuples and dicts"
    )


def from_values(values: Mapping[str, Any]) -> Config:
    """Returns the config of values written by ``to_json``; missing keys get its model's defaults.

    Raises:
        UserError: as ``check`` does.
    """
    config = default(_model_name(values))
    with config.unlocked(), config.ignore_type():  # the errors of ``check`` are clearer
        for key, value in _lists_to_tuples(values).items():
            config[key] = dict(value) if key == "roles" else value
    check(complete(config))
    return config


_TRANSPLANT = re.compile(r"from=(.+?)(?:@([0-9a-f]{16}))?", re.DOTALL)


def transplant(filters: Any) -> tuple[str, str | None] | None:
    """Parses ``model.filters`` into the folder that the filters come from and their hash.

    >>> transplant("from=runs/a")
    ('runs/a', None)
    >>> transplant("from=runs/a@0123456789abcdef")
    ('runs/a', '0123456789abcdef')
    >>> transplant("random")
    """
    match = _TRANSPLANT.fullmatch(filters) if isinstance(filters, str) else None
    return (match[1], match[2]) if match else None


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that make the run what it is, by dotted key, without display keys.

    Of transplanted filters the hash counts, not the folder they came from. As long as the hash
    isn't known, which is before the run is assembled, the text as given counts.
    """
    values = {key: value for key, value in flatten(config).items() if key not in DISPLAY_KEYS}
    _, digest = transplant(values.get("model.filters")) or (None, None)
    return values | ({"model.filters": f"from=@{digest}"} if digest else {})


def fingerprint(config: Mapping[str, Any]) -> str:
    """Returns eight hex digits that identify the run, from its `identity`."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that aren't those of ``default``, by dotted key, without display keys.

    >>> changed(recipe("digits:tiny"))["model.depth"]
    1
    >>> changed(default("resnet"))
    {'model.name': 'resnet'}
    """
    usual = flatten(expected(config)) | {"model.name": default().model.name}
    return {
        key: value
        for key, value in flatten(config).items()
        if key not in DISPLAY_KEYS and value != usual.get(key)
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists ``"key: old -> new"`` for every key that makes two configs different runs."""
    before, after = identity(old), identity(new)
    return [
        f"{k}: {before.get(k)!r} -> {after.get(k)!r}"
        for k in sorted(before.keys() | after.keys())
        if before.get(k) != after.get(k)
    ]


# Augmentation that gives an image two labels or values outside [0, 1].
_MIXING = ("data.mixup", "data.cutmix", "data.random_erasing")
_TYPES = {str: "a text", bool: "True or False", tuple: "a tuple", ConfigDict: "a group of keys"}
_START = "start from randmix.config.default()"


def check(config: Config) -> None:
    """Raises a UserError that names the key of a missing or unknown key or a bad value.

    Numbers must be in the ranges of ``randmix.ranges``. Names are checked where they are looked up.
    """
    _check_keys(config, expected(config))
    if config.schedule.name in SCHEDULES:
        shares = [share for share, _ in config.schedule.points]
        if not shares or shares != sorted(shares):
            raise UserError(
                f"config.schedule.points: got fractions {shares}, allowed one or more, rising"
            )
    for group in ("roles", "user"):
        _check_texts(config[group], f"config.{group}")
    for role, selector in config.roles.items():
        if not re.fullmatch(r"[A-Za-z]\w*", role) or role == "batch_stats":
            raise UserError(
                f"config.roles: got the role {role!r}, allowed are letters, digits and _, but not "
                "'batch_stats'"
            )
        if not isinstance(selector, str):
            raise UserError(
                f"config.roles.{role}: got {ranges.shown(selector)}, allowed is a selector's text"
            )
    if config.roles and not parts.is_own(config.model.name):
        raise UserError(
            f"config.roles: got {', '.join(config.roles)}, allowed is {{}} with the model "
            f"{config.model.name}, whose collections are its roles"
        )
    if config.task == "unshuffling":
        more = ("label_smoothing", "defense.epsilon", *_MIXING)
        _require_zero(config, more, "the task unshuffling")
    if parts.is_own(config.task):
        _require_zero(config, ("label_smoothing",), "a task of your own, which may have its own")
    if config.defense.epsilon:
        _require_zero(config, _MIXING, "config.defense.epsilon")
    check_choice("config.precision", config.precision, ("float32", "bfloat16"))
    check_choice("config.data.decoder", config.data.decoder, ("auto", "simplejpeg", "pillow"))
    check_choice(
        "config.data.interpolation",
        config.data.interpolation,
        ("fast", "antialias", "antialias_random"),
    )
    check_choice("config.data.in_memory", config.data.in_memory, ("auto", "on", "off"))
    check_choice("config.data.corrupt", config.data.corrupt, ("fatal", "skip"))


def _check_texts(values: Any, where: str) -> None:
    """Raises a UserError for a key that isn't a text: JSON would make it one."""
    for key, value in values.items() if isinstance(values, Mapping | ConfigDict) else ():
        if not isinstance(key, str):
            raise UserError(f"{where}: got the key {key!r}, allowed are texts")
        _check_texts(value, f"{where}.{key}")


def _model_name(config: Mapping[str, Any]) -> Any:
    try:
        return config["model"]["name"]
    except (KeyError, TypeError) as error:
        raise UserError(f"config.model.name: missing; {_START}") from error


def _unknown(key: str, known: Iterable[str], model: str | None = None) -> UserError:
    nearest = did_you_mean(key.rpartition(".")[2], known)
    if model is None:
        return UserError(f"config.{key}: no such key{nearest}; {_START}")
    return UserError(
        f"config.{key}: no such key with the model {model}{nearest}; start from a file of that "
        f"model, or from randmix.config.default({model!r})"
    )


def _check_keys(
    config: ConfigDict, defaults: ConfigDict, group: str = "", more: bool = False
) -> None:
    """Checks keys and types against the defaults, and numbers against their ranges.

    ConfigDict does so only in part: it takes None for any type and True for 1, and a config may be
    made without it.
    """
    for key in config:
        if key not in defaults and not more:
            model = config.name if group == "model." else None
            raise _unknown(f"{group}{key}", defaults, model)
    for key in defaults:
        name = f"{group}{key}"
        if key not in config:
            raise UserError(f"config.{name}: missing; {_START}")
        got, expected = config[key], defaults.get_type(key)
        if got is None and (defaults[key] is None or name == "data.name"):
            pass
        elif name in ranges.CONFIG:
            ranges.check(f"config.{name}", got, ranges.CONFIG[name])
        elif issubclass(expected, ConfigDict) and isinstance(got, ConfigDict):
            _check_keys(got, defaults[key], f"{name}.", is_open(config, key))
        elif not isinstance(got, expected):
            kind = ConfigDict if issubclass(expected, ConfigDict) else expected
            raise UserError(f"config.{name}: got {ranges.shown(got)}, allowed {_TYPES[kind]}")


def _require_zero(config: Config, keys: Iterable[str], other: str) -> None:
    for key in keys:
        if got := functools.reduce(getattr, key.split("."), config):
            raise UserError(f"config.{key}: got {got!r}, allowed 0 with {other}")


def total_steps(config: Config, train_examples: int) -> int:
    """Returns the number of steps: ``steps``, or ``epochs`` times the full batches per epoch.

    Raises:
        UserError: the batch is larger than the training set, or there are too many steps.
    """
    per_epoch = train_examples // config.batch_size
    if not per_epoch:
        raise UserError(
            f"config.batch_size: got {config.batch_size}, allowed up to the {train_examples} "
            "training examples; set a smaller one"
        )
    if config.steps is not None:
        return config.steps
    steps = max(1, round(config.epochs * per_epoch))
    if steps > ranges.INT32:
        raise UserError(
            f"config.epochs: got {config.epochs!r}, which is {steps} steps, allowed up to "
            f"{ranges.INT32} steps; set a smaller one, or a larger config.batch_size"
        )
    return steps


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists_to_tuples(v) for k, v in value.items()}
    return tuple(_lists_to_tuples(v) for v in value) if isinstance(value, list) else value
