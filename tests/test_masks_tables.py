"""The tables of summary and diff against NumPy."""

from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mask_cases import model_params

from randmix import masks
from randmix.masks import MaskError, everything, fraction, role


class Cells(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        self.cells[-1] += data


def test_summary_counts():
    params = jax.eval_shape(lambda: model_params(8))
    labels = masks.labels(params, masks.trainable("chans"))
    summary = masks.summary(params, labels)
    sizes = {"spatial": 4 * (9 * 8 + 8), "channel": 3 * (64 + 8), "norm": 3 * 16, "head": 64 + 8}
    assert summary.totals == {
        "train": sum(sizes.values()) - sizes["spatial"],
        "freeze": sizes["spatial"],
    }
    assert (summary.trainable, summary.frozen) == (
        summary.totals["train"],
        summary.totals["freeze"],
    )
    assert sum(row.share for row in summary.rows) == pytest.approx(1)
    row = next(row for row in summary.rows if row.path == "spatial/stem/kernel")
    assert row == (
        "spatial/stem/kernel",
        (3, 3, 8),
        "float32",
        "spatial",
        "freeze",
        72,
        0,
        72 / sum(sizes.values()),
    )


def test_a_column_may_have_numbers_of_what_is_no_parameter():
    params = {"spatial": {"kernel": np.ones((2, 3))}, "head": {"bias": np.ones(3)}}
    labels = masks.labels(params, masks.trainable("chans"))
    costs = {"spatial/kernel": 60, "products/block_0": 7000}
    table = masks.summary(params, labels, columns={"cost": costs, "other": {"head/bias": 5}})
    lines = [line.split() for line in str(table).splitlines()]
    assert lines[4] == ["products/block_0", "7,000"]  # after the parameters' rows
    assert lines[-1][-2:] == ["7,060", "5"]
    assert (table.trainable, table.frozen) == (3, 6)
    cells = Cells(table._repr_html_()).cells
    assert cells.count("products/block_0") == 1
    assert len(cells) == 9 * (1 + 3 + 3)  # header, rows, totals: train, freeze and all


def test_summary_counts_the_learned_part_of_a_leaf():
    params = {"spatial": {"kernel": np.ones((3, 3, 10)), "bias": np.ones(10)}, "head": np.ones(10)}
    rules = [("slow", fraction(role("spatial"), 0.3)), ("train", everything)]
    summary = masks.summary(params, masks.labels(params, rules), masks.channel_masks(params, rules))
    assert summary.totals == {"train": 10, "slow": 30, "freeze": 70}
    assert (summary.trainable, summary.frozen) == (40, 70)
    assert [row.learned for row in summary.rows] == [10, 3, 27]
    assert str(summary).splitlines()[0].split() == [
        *["path", "shape", "dtype", "role", "label", "count", "learned", "share"]
    ]


def test_summary_text_and_html_hold_the_same_cells():
    params = {
        "<script>": {"kernel & co": np.ones((2, 1000), np.float16)},
        "a": {"f": jax.nn.relu, "n": 1},
    }
    summary = masks.summary(params, masks.labels(params, [("train", everything)]))
    html = summary._repr_html_()
    parsed = Cells(html)
    assert parsed.tags == {"table", "thead", "tbody", "tfoot", "tr", "td", "th"}
    lines = repr(summary).splitlines()
    rows = [parsed.cells[start : start + 7] for start in range(0, len(parsed.cells), 7)]
    assert [line.split() for line in lines if set(line) != {"-", " "}] == [
        " ".join(row).split() for row in rows
    ]
    assert rows[1] == [
        "<script>/kernel & co",
        "(2, 1000)",
        "float16",
        "<script>",
        "train",
        "2,000",
        "100.0 %",
    ]
    assert [row[5] for row in rows[2:4]] == ["0", "1"]
    assert len({line.index("train") for line in lines if "train" in line}) == 1  # aligned


def test_summary_refuses_trees_that_do_not_fit():
    params = {"a": np.ones((2, 3))}
    labels = {"a": "train"}
    with pytest.raises(
        MaskError, match=r"^the channel mask of 'a' has shape \(2,\), which doesn't broadcast to"
    ):
        masks.summary(params, labels, {"a": np.ones(2, bool)})
    with pytest.raises(MaskError, match=r"^channel_masks does not have the parameters' structure"):
        masks.summary(params, labels, {"a": None, "b": None})


@pytest.mark.parametrize(
    ("before", "after", "changed", "max_abs", "relative"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0, 0, 0),
        ([3.0, 4.0], [3.0, 4.5], 1, 0.5, 0.1),
        ([0.0, 1.0], [-0.0, 1.0], 1, 0, 0),
        ([np.nan, 1.0], [np.nan, 1.0], 0, 0, 0),
        ([np.inf, 4.0], [np.inf, 4.0], 0, 0, 0),
        ([np.nan, 1.0], [-np.nan, 1.0], 1, np.nan, np.nan),
        ([0.0, 0.0], [0.0, 2.0], 1, 2, np.inf),
        ([1.0, 1.0], [np.nan, 1.0], 1, np.nan, np.nan),
        ([], [], 0, 0, 0),
        ([3 + 4j], [3 + 0j], 1, 4, 0.8),
        ([2, 250], [2, 5], 1, 245, 245 / np.hypot(2, 250)),
    ],
)
def test_diff_compares_bits(before, after, changed, max_abs, relative):
    kind = {int: np.uint8, complex: np.complex64}.get(
        type(before[0]) if before else float, np.float32
    )
    (row,) = masks.diff({"a": np.array(before, kind)}, {"a": np.array(after, kind)}).rows
    assert row[3:5] == (len(before), changed)
    np.testing.assert_allclose(row[5:], [max_abs, relative], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4", "float8_e4m3fn", "bool", "float64", "int32"])
def test_diff_of_all_dtypes(dtype):
    zeros = np.zeros((2, 3), jnp.dtype(dtype))
    one = zeros.copy()
    one[1, 2] = 1
    (row,) = masks.diff([zeros], [one]).rows
    assert row[3:] == (6, 1, 1.0, np.inf)
    assert masks.diff([zeros], [zeros.copy()]).unchanged == ["0"]


def test_diff_of_keys_transposed_arrays_and_device_arrays():
    tree = {"key": jax.random.key(0), "t": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}
    other = {"key": jax.random.key(1), "t": jnp.asarray(tree["t"])}
    result = masks.diff(tree, other)
    assert (result.moved, result.unchanged) == (["key"], ["t"])


def test_diff_shows_labels_and_totals():
    before = {"spatial": np.ones(2), "head": np.ones(2)}
    after = {"spatial": np.ones(2), "head": np.full(2, 1.5)}
    text = str(masks.diff(before, after, masks.labels(before, masks.trainable("chans"))))
    assert text.splitlines()[2:] == [
        "head                  head     train   moved                2 of 2      0.5          0.5",
        "spatial               spatial  freeze  unchanged            0 of 2        0            0",
        "--------------------  -------  ------  ---------  ----------------  -------  -----------",
        "1 moved, 1 unchanged",
    ]
    assert "1 moved, 1 unchanged" in Cells(masks.diff(before, after)._repr_html_()).cells


def test_messages_of_diff():
    for a, b, message in [
        (
            {"a": {"b": 1.0}},
            {"a": {"c": 1.0}},
            "the trees differ in structure: only the first has 'a/b'",
        ),
        (
            {"a": 1.0},
            {"a": 1.0, "d": 2.0},
            "the trees differ in structure: only the second has 'd'",
        ),
        (
            {"a": np.ones(2)},
            {"a": np.ones(3, np.float32)},
            "'a' is float64[2] in the first tree and float32[3] in the second: "
            "compare trees of the same model",
        ),
        (
            {"a": jax.ShapeDtypeStruct((2,), jnp.float32)},
            {"a": np.ones(2)},
            "'a' has no values to compare: got ShapeDtypeStruct",
        ),
    ]:
        with pytest.raises(MaskError) as caught:
            masks.diff(a, b)
        assert str(caught.value) == message
