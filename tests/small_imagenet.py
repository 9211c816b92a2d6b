"""ImageNet in ten training and five validation images: as archives, and as extracted files."""

import pictures
import tensorflow_datasets as tfds

from randmix.data import imagenet

CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
TRAIN_IMAGES = 10
VALIDATION = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 6)]
# TFDS's list, read by its own rule: a line per validation image, in the order of their names.
SYNSETS = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()


def training_images():
    """{class: {file name: bytes}}, with a CMYK JPEG and a PNG under their real names."""
    images = {
        "n01440764": {f"n01440764_{k}.JPEG": pictures.encode(pictures.noise(k)) for k in range(3)}
    }
    images["n01739381"] = {
        CMYK: pictures.encode(pictures.photograph(0, 60, 50), mode="CMYK", quality=95)
    }
    images["n02105855"] = {PNG: pictures.encode(pictures.photograph(1, 60, 50), "PNG")}
    for k, synset in enumerate(SYNSETS[:5]):  # the classes of the validation images
        images.setdefault(synset, {})[f"{synset}_7.JPEG"] = pictures.encode(pictures.noise(50 + k))
    return images


def validation_images():
    return {name: pictures.encode(pictures.noise(100 + k)) for k, name in enumerate(VALIDATION)}


def archives():
    train = {f"{name}.tar": pictures.tar(files) for name, files in training_images().items()}
    # labels follow the names
    shuffled = {name: validation_images()[name] for name in VALIDATION[::-1]}
    return {imagenet.TRAIN: pictures.tar(train), imagenet.VALIDATION: pictures.tar(shuffled)}


def tree(folder, *, flat):
    """The stand-ins as extracted files; those of validation in one folder or in class folders."""
    for synset, files in training_images().items():
        (folder / "train" / synset).mkdir(parents=True)
        for name, data in files.items():
            (folder / "train" / synset / name).write_bytes(data)
    for synset, (name, data) in zip(SYNSETS, validation_images().items(), strict=False):
        target = folder / "val" if flat else folder / "val" / synset
        target.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    # What is found beside the images.
    (folder / "README.txt").write_text("How this was made.")
    (folder / "val" / "LOC_val_solution.csv").write_text("ImageId,PredictionString")
    (folder / "train" / "synsets.txt").write_text("n01440764")
    (folder / "train" / "n01440764" / ".DS_Store").write_bytes(b"left by a file manager")
    return folder


def stored(directory):
    """{split: its records in order}, read by TFDS alone; the classes by name."""
    builder = tfds.builder_from_directory(directory)
    names = builder.info.features["label"].names
    sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    return {
        split: [
            dict(x, label=names[x["label"]]) for x in map(source.__getitem__, range(len(source)))
        ]
        for split, source in sources.items()
    }
