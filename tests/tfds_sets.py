"""Small sets in the format of TFDS's own, written by TFDS: stand-ins for those that users name."""

import io

import numpy as np
import pictures
import tensorflow_datasets as tfds
from PIL import Image

# Name, the image feature's shape, further features, and the splits' sizes; as in TFDS's catalog.
SETS = {
    "svhn_cropped": ((32, 32, 3), 10, {}, {"train": 40, "test": 12, "extra": 8}),
    "stl10": ((96, 96, 3), 10, {}, {"train": 20, "test": 10, "unlabelled": 6}),
    "oxford_flowers102": (
        (None, None, 3),
        102,
        {"file_name": tfds.features.Text()},
        {"train": 20, "test": 12, "validation": 10},
    ),
    "cifar10_corrupted": ((32, 32, 3), 10, {}, {"test": 20}),
    "eurosat": ((64, 64, 3), 10, {"filename": tfds.features.Text()}, {"train": 43}),
    "places": ((32, 32, 3), 10, {}, {"train": 20, "test": 6, "validation": 8}),
    "stickers": ((32, 32, 4), 10, {}, {"train": 4, "test": 4}),
    "emnist": ((28, 28, 1), 47, {}, {"train": 30, "test": 10}),
}


def pixels(name, split, row):
    """The image of an example, [H, W, C] uint8: noise, so that no two are alike."""
    height, width, channels = SETS[name][0]
    if height is None:
        height, width = 30 + row, 45 - row
    seed = row + 1000 * sorted(SETS[name][3]).index(split)
    return pictures.noise(seed, width, height, channels).reshape(height, width, channels)


def label(name, split, row):
    unknown = split == "unlabelled" or (name, split) == ("places", "test")
    return -1 if unknown else row % SETS[name][1]


def class_names(name):
    return [f"class {k}" for k in range(SETS[name][1])]


def prepare(name, data_dir, *, version="3.0.0", config=None, damaged=(), **features):
    """Writes a set to DATA_DIR/NAME[/CONFIG]/VERSION and returns that folder.

    The images of the damaged rows, in each split, end after 100 bytes.
    """
    shape, _, more, splits = SETS[name]
    set_name = name

    class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=shape),
                        "label": tfds.features.ClassLabel(names=class_names(name)),
                        **more,
                        **features,
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for row in range(splits[split]):
                image = Image.fromarray(np.squeeze(pixels(name, split, row)))
                if row in damaged:
                    image = io.BytesIO(pictures.encode(np.asarray(image), "PNG")[:100])
                example = {"image": image, "label": label(name, split, row)}
                names = dict.fromkeys(more, f"{split}/{row}.png")
                yield row, example | names | dict.fromkeys(features, row)

    builder = Set(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path
