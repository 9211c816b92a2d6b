"""Figures: readable in grey, reproducible files, no global state."""

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from randmix.analysis import plots
from randmix.errors import UserError


def lightness(rgb):
    """CIE L*, 0 to 100, of sRGB colours [..., 3]."""
    linear = np.where(
        np.asarray(rgb) <= 0.04045, np.divide(rgb, 12.92), ((np.add(rgb, 0.055)) / 1.055) ** 2.4
    )
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


@plots.style()
def lines():
    figure = plots.new_figure(3, 2)
    axes = figure.subplots()
    plots.mean_and_spread(axes, [1, 2, 4], [[0, 1, 5], [2, 3, 5]], label="full", **plots.series(0))
    plots.mean_and_spread(axes, [1, 2, 4], [[1, 1, 1]], label="chans", **plots.series(1))
    axes.set(xlabel="depth (blocks)", ylabel="accuracy (%)")
    axes.legend()
    return figure


def test_series_and_images_can_be_told_apart_in_grey():
    shades = [lightness(colors.to_rgb(plots.series(i)["color"])) for i in range(5)]
    assert all(light - dark > 10 for dark, light in itertools.pairwise(shades)), shades
    assert shades[-1] < 80  # on white paper
    looks = [plots.series(i) for i in range(25)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 25
    assert len({look["marker"] for look in looks[:5]}) == 5
    for name in (plots.MAGNITUDE_MAP, plots.SIGNED_MAP):
        ramp = lightness(matplotlib.colormaps[name](np.linspace(0, 1, 33))[:, :3])
        assert (np.diff(ramp) > 0).all(), name


def test_a_line_is_the_mean_of_the_seeds_in_a_band_of_one_standard_deviation():
    (axes,) = lines().axes
    full, chans = axes.lines
    np.testing.assert_array_equal(full.get_xydata(), [[1, 1], [2, 2], [4, 5]])
    np.testing.assert_array_equal(chans.get_ydata(), [1, 1, 1])
    (band,) = axes.collections  # one seed has no spread
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(1, -0.414214), (1, 2.414214), (2, 0.585786), (2, 3.414214), (4, 5)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["full", "chans"]


@plots.style()
def test_missing_values_are_left_out_and_bars_are_one_standard_deviation():
    axes = plots.new_figure(3, 2).subplots()
    values = [[0, np.nan, 1], [4, 3, 1]]
    plots.mean_and_spread(axes, [1, 2, 3], values, label="", bars=True)
    ((line, _, (bars,)),) = axes.containers
    np.testing.assert_array_equal(line.get_ydata(), [2, 3, 1])
    low, high = np.array([s[:, 1] for s in bars.get_segments() if len(s)]).T
    np.testing.assert_allclose([low[0], high[0], low[-1]], [2 - 8**0.5, 2 + 8**0.5, 1])


def test_saving_writes_the_picture_twice_and_its_data(tmp_path):
    rows = [
        {"mode": "full", "depth": 1, "accuracy": 1 / 3},
        {"mode": "chans", "depth": 2, "accuracy": 1.0},
    ]
    files = plots.save(lines(), tmp_path / "new" / "a.b", rows)
    assert [file.name for file in files] == ["a.b.png", "a.b.svg", "a.b.csv"]
    assert files[2].read_text() == "mode,depth,accuracy\nfull,1,0.333333\nchans,2,1\n"
    with Image.open(files[0]) as image:
        assert image.width == pytest.approx(3 * 200, abs=30)
    assert "<svg" in files[1].read_text()
    again = plots.save(lines(), tmp_path / "again")
    assert [file.name for file in again] == ["again.png", "again.svg"]
    for first, second in zip(files, again, strict=False):
        assert first.read_bytes() == second.read_bytes()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file: can't be written \(File exists\); give a folder that you may"
    ):
        plots.save(lines(), tmp_path / "file" / "a")


@pytest.mark.parametrize("channels", [(), (3,)])
def test_tiles_stand_in_rows_with_gaps(channels):
    images = np.random.default_rng(0).random((2, 3, 4, 5, *channels))
    sheet = plots.tile(images, gap=2)
    assert sheet.shape == (2 * 4 + 2, 3 * 5 + 2 * 2, *channels)
    for row, column in np.ndindex(2, 3):
        shown = sheet[row * 6 : row * 6 + 4, column * 7 : column * 7 + 5]
        np.testing.assert_array_equal(shown, images[row, column])
    assert np.isnan(sheet).sum() == sheet.size - images.size


def test_a_style_ends_and_pyplot_is_not_used():
    with matplotlib.rc_context({"font.size": 31}):
        before = dict(matplotlib.rcParams)
        lines()
        assert dict(matplotlib.rcParams) == before
    code = (
        "import sys\n"
        "from randmix.analysis import plots\n"
        "print('jax' in sys.modules)\n"
        "with plots.style():\n"
        "    plots.new_figure(1, 1).subplots()\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nFalse\n"
