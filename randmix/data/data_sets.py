"""Properties of a data set, and the data sets that are known by name."""

import dataclasses

from etils import epath

from randmix.data import records

IMAGENET = "imagenet2012"
IMAGE_SIZE = 224  # default side of cropped photographs, in pixels
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of labelled images.

    Attributes:
        name: the name in a config.
        image_shape: (height, width, channels) of a model's input.
        num_classes: the number of classes; labels are 0 .. num_classes - 1.
        train_examples: size of the train split; 0 if there is none.
        test_examples: size of the test split.
        version: the version that is read; of arrays, their hash.
        embedded: whether it needs no prepared files.
        streamed: whether it consists of photographs of any size, or too many for memory;
            `randmix.data.stream` decodes and crops them during training.
        train_split, evaluation_split: TFDS's names of the splits that are called "train" and
            "test" here.
        statistics: mean and standard deviation of the training pixels in [0, 1], per channel; None
            if they are unknown.
        shorter_side: median of the images' shorter sides in pixels, of a streamed set; None if it
            is unknown.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    train_examples: int
    test_examples: int
    version: str
    embedded: bool = False
    streamed: bool = False
    train_split: str = "train"
    evaluation_split: str = "test"
    statistics: Statistics | None = None
    shorter_side: int | None = None

    def examples(self, split: str) -> int:
        """The number of examples in a split, 'train' or 'test'."""
        return {"train": self.train_examples, "test": self.test_examples}[split]

    def tfds_split(self, split: str) -> str:
        """TFDS's name of a split, 'train' or 'test'."""
        return {"train": self.train_split, "test": self.evaluation_split}[split]

    def directory(self, data_dir: epath.PathLike | None = None) -> epath.Path:
        """The data set's directory: <data_dir>/<name>/<version>."""
        folder = self.name.removeprefix("tfds/").partition(":")[0]
        return records.resolve_data_dir(data_dir) / folder / self.version


# The statistics are those in common use.
DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet("digits", (8, 8, 1), 10, 1437, 360, "1.0.0", embedded=True, statistics=((), ())),
        DataSet(
            "mnist", (28, 28, 1), 10, 60_000, 10_000, "3.0.1", statistics=((0.1307,), (0.3081,))
        ),
        DataSet(
            "fashion_mnist",
            (28, 28, 1),
            10,
            60_000,
            10_000,
            "3.0.1",
            statistics=((0.286,), (0.353,)),
        ),
        DataSet(
            "cifar10",
            (32, 32, 3),
            10,
            50_000,
            10_000,
            "3.0.2",
            statistics=((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ),
        DataSet(
            "cifar100",
            (32, 32, 3),
            100,
            50_000,
            10_000,
            "3.0.2",
            statistics=((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        ),
        DataSet(
            IMAGENET,
            (IMAGE_SIZE, IMAGE_SIZE, 3),
            1000,
            1_281_167,
            50_000,
            "5.1.0",
            streamed=True,
            evaluation_split="validation",
            statistics=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
    )
}
