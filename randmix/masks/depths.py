"""Depths of leaves: the numbers of the blocks that hold them, counted over the whole tree."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from randmix.masks.errors import MaskError, shown

_DIGITS = "0123456789"
_MAX_DIGITS = 4300  # Python reads no longer number


class _Numbered(NamedTuple):
    """A path component with a number: `block_03`, `layer3`, or the 3 in `layers/3`.

    Attributes:
        word: the name without its number. An entry of a list has the list's name; an entry of a
            list that is itself numbered (the 0 in `layer3/0`) has that word and a slash.
        number: the number.
        place: position of the component in the path.
        holds_layers: whether the leaf lies deeper than right inside, as the kernel of a layer does.
        is_name: whether the number directly follows letters, as in `layer3`.
    """

    word: str
    number: int
    place: int
    holds_layers: bool
    is_name: bool

    @property
    def is_entry(self) -> bool:
        """Whether it is an entry of a list that is itself numbered."""
        return self.word.endswith("/")

    def is_called(self, *names: str) -> bool:
        return self.word.rstrip("/").lower().removesuffix("s").endswith(names)


def depths(paths: Sequence[str]) -> list[int | None]:
    """Depths of all leaves of one tree, given by their slash-joined paths.

    A component has a number if it is one (`layers/3`) or ends in one (`block_03`, `layer3`). The
    block of a leaf is the first numbered component called a block, or else the first one not called
    a stage. Numbers around it count too (`stage_1/block_3`, `layers/1/blocks/0`), and so does a
    list right inside it whose entries all hold layers (`layer1/0/conv1`).

    In a tree with such nested numbers, the depth is the block's running number, from 0; otherwise
    it is the number itself. A number whose node holds arrays, no layers (Flax's `Dense_0`,
    PyTorch's `conv1`), is a layer's: it counts only if it is called a block or layer, or the tree
    has no other numbers. That of a whole model (`resnet50`) doesn't count either.

    Returns:
        For each path its depth, or None for a leaf outside all blocks. A leaf of a stage that lies
        in none of its blocks has the depth of the first one.

    >>> depths(["stem/kernel", "stage_0/block_0/kernel", "stage_0/block_1/kernel", "head/bias"])
    [None, 0, 1, None]
    >>> depths(["stage_0/block_1/kernel", "stage_0/block_4/kernel", "stage_1/block_0/kernel"])
    [0, 1, 2]
    >>> depths(["conv1/weight", "layer1/0/conv1/weight", "layer1/1/conv1/weight"])
    [None, 0, 1]
    """
    addresses = list(map(_address, _counted([list(_numbered(path)) for path in paths])))
    found = sorted(set(filter(None, addresses)))
    if all(len(address) == 1 for address in found):
        return [address[0] if address else None for address in addresses]
    # The address of a stage is the beginning of its blocks' and sorts right before them.
    blocks = [
        one for one, after in zip(found, [*found[1:], ()], strict=True) if after[: len(one)] != one
    ]
    return [bisect_left(blocks, address) if address else None for address in addresses]


def depth_alone(path: str) -> int | None:
    """The depth of a leaf of which only the path is known, not the tree.

    Raises:
        MaskError: it is the block of a stage, whose running number depends on the other stages.
    """
    (address,) = map(_address, _counted([list(_numbered(path))]))
    if len(address) > 1:
        raise MaskError(
            f"the depth of {shown(path)} is a running number, which needs the whole tree: "
            "use masks.paths, masks.mask or masks.labels"
        )
    return address[0] if address else None


def _numbered(path: str) -> Iterator[_Numbered]:
    """The numbered components of a path, from the root."""
    components = path.split("/")
    around = ""  # what an entry of a list is called
    for place, component in enumerate(components):
        name = component.rstrip(_DIGITS)
        digits = component[len(name) :]
        if not 0 < len(digits) <= _MAX_DIGITS:
            around = component
            continue
        word = name.rstrip("_") if name else around
        yield _Numbered(
            word, int(digits), place, len(components) - place > 2, bool(name) and name[-1] != "_"
        )
        around = word + "/"


def _counted(numbered: list[list[_Numbered]]) -> list[list[_Numbered]]:
    """What remains of each path's components without those that number no block."""
    numbers: dict[str, set[int]] = {}
    flat: set[str] = set()  # words of nodes that hold arrays
    deep: set[str] = set()  # words of nodes that hold layers, or are called so
    for one in (one for path in numbered for one in path):
        numbers.setdefault(one.word, set()).add(one.number)
        (deep if one.holds_layers else flat).add(one.word)
        if one.is_called("block", "layer") and not one.is_entry:
            deep.add(one.word)

    def names_model(one: _Numbered) -> bool:
        alone = one.is_name and len(numbers[one.word]) == 1
        return alone and not one.is_called("block", "layer", "stage")

    def counts(one: _Numbered) -> bool:
        return one.word in deep and not (one.is_entry and one.word in flat)

    series = [[one for one in path if not names_model(one)] for path in numbered]
    if not any(counts(one) for path in series for one in path):
        return series
    return [[one for one in path if counts(one)] for path in series]


def _address(numbered: list[_Numbered]) -> tuple[int, ...]:
    """The numbers of a leaf's stages and block, of those that count in its path."""
    blocks = [i for i, one in enumerate(numbered) if one.is_called("block")]
    others = [i for i, one in enumerate(numbered) if not one.is_called("stage")]
    end = next(iter([*blocks, *others, len(numbered) - 1])) + 1
    if end < len(numbered) and numbered[end].is_entry:
        end += numbered[end].place == numbered[end - 1].place + 1
    return tuple(one.number for one in numbered[:end])
