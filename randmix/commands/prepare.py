"""``python -m randmix prepare``."""

from absl import flags

from randmix.commands import Command, shared

HELP = """
    python -m randmix prepare fashion_mnist
    python -m randmix prepare fashion_mnist --manual_dir=/usr/share/datasets/fashion-mnist
    python -m randmix prepare cifar10 --data_dir=/data/tfds --num_shards=4
    python -m randmix prepare imagenet2012 --manual_dir=/data/imagenet
    python -m randmix prepare imagenet2012 --source=/data/ILSVRC/Data/CLS-LOC
    python -m randmix prepare imagenet2012 --source=/data/imagenette2-320 --allow_subset
    python -m randmix prepare imagefolder --source=/data/pets --name=pets
    python -m randmix prepare tfds/svhn_cropped
    python -m randmix prepare arrays --source=pathmnist.npz

DATA_SET is one of
    digits          1,437 + 360 handwritten digits of 8x8 pixels, from scikit-learn
    mnist           60,000 + 10,000 handwritten digits of 28x28 pixels
    fashion_mnist   60,000 + 10,000 articles of clothing of 28x28 pixels
    cifar10         50,000 + 10,000 colour photographs of 32x32 pixels, 10 classes
    cifar100        50,000 + 10,000 colour photographs of 32x32 pixels, 100 classes
    imagenet2012    1,281,167 + 50,000 photographs of any size, 1,000 classes; needs 320 GB of space
                    and --manual_dir with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or
                    --source=DIR with DIR/train/nXXXXXXXX/*.JPEG and DIR/val, flat or in class
                    folders. With --allow_subset, whatever DIR holds of it, such as Imagenette,
                    becomes the data set imagenet2012/NAME, NAME as below
    imagefolder     your own images, JPEG or PNG, from --source=DIR: DIR/train/CLASS/*.jpg and
                    DIR/test/CLASS/*.jpg (or val), or DIR/CLASS/*.jpg, of which a tenth becomes the
                    test split. The data set is named imagefolder/NAME, where NAME is --name or by
                    default the folder's name
    tfds/NAME       what TFDS prepared in DATA_DIR/NAME[/CONFIG]/VERSION, as tfds/NAME[/CONFIG] with
                    or without :VERSION: TFRecord files are copied to ArrayRecord files beside them,
                    and the images' sizes and channel statistics are recorded
    arrays          the .npz file --source, with the arrays train_images, train_labels, test_images
                    and test_labels, or x_train, y_train, x_test and y_test. The data set is named
                    arrays/NAME, where NAME is --name or by default the file's name

Turns archives into ArrayRecord files, without TensorFlow. Archives are downloaded to
DATA_DIR/downloads/DATA_SET and kept, or read from --manual_dir, which must contain them under their
original names and is never written to. They are verified against TFDS's checksums (ImageNet's
against their sizes and the number of images). docs/data.md describes which images of an imagefolder
are converted and which are refused.
The result is the same as TFDS's own: `tfds.data_source(DATA_SET, split="train")` reads it. An
interrupted preparation leaves no incomplete data set; run the command again.

Exit status: 0 done, 2 a mistake in the command or in the data.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    shared.data_dir("$TFDS_DATA_DIR, or ~/tensorflow_datasets")
    flags.DEFINE_string(
        "manual_dir",
        None,
        "Folder with the data set's original archives, instead of downloading them.",
    )
    flags.DEFINE_string(
        "source",
        None,
        "imagefolder, imagenet2012: the folder with the (extracted) images; arrays: the .npz file.",
    )
    flags.DEFINE_bool(
        "allow_subset",
        False,
        "imagenet2012: take what --source holds, as the data set imagenet2012/NAME.",
    )
    flags.DEFINE_string(
        "name",
        None,
        "The NAME of imagefolder/NAME, imagenet2012/NAME or arrays/NAME. Default: that of the "
        "folder or file.",
    )
    flags.DEFINE_integer(
        "num_shards",
        None,
        "Number of files per split. Default: TFDS chooses by size.",
        lower_bound=1,
    )


COMMAND = Command(HELP, "randmix.data.prepare", define_flags, arguments=("DATA_SET",))
