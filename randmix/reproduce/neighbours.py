"""Related results published by others, shown for comparison; no verdict uses them."""

from typing import NamedTuple


class Neighbour(NamedTuple):
    """A pair of published test accuracies in per cent.

    Attributes:
        source: authors or title, and arXiv number.
        model: the model, in their terms.
        data: this project's name of the data set.
        frozen: accuracy with frozen random spatial mixing.
        learned: accuracy with learned spatial mixing (RandFormer: with no mixing, the identity).
    """

    source: str
    model: str
    data: str
    frozen: float
    learned: float


_GAVRIKOV = "Gavrikov & Keuper, arXiv 2301.11360"
_RANDFORMER = "MetaFormer Baselines, arXiv 2210.13452: RandFormer against IdentityFormer"

NEIGHBOURS = (
    Neighbour(_GAVRIKOV, "ResNet-20 x128, learned 1x1 combinations", "cifar10", 91.89, 91.39),
    Neighbour(_GAVRIKOV, "ResNet-20 x128, learned 1x1 combinations", "cifar100", 61.31, 59.44),
    Neighbour(_GAVRIKOV, "ResNet-20 x128, learned 1x1 combinations", "fashion_mnist", 93.65, 93.44),
    Neighbour(_GAVRIKOV, "ResNet-18d x8, learned 1x1 combinations", "imagenet2012", 71.30, 71.88),
    Neighbour(_GAVRIKOV, "ResNet-18d x64, learned 1x1 combinations", "imagenet2012", 72.46, 71.94),
    Neighbour(_RANDFORMER, "S12; the second number is without mixing", "imagenet2012", 76.6, 74.6),
    Neighbour(_RANDFORMER, "M48; the second number is without mixing", "imagenet2012", 81.4, 80.4),
)
