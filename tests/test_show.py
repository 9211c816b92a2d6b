"""The picture of a batch before and after augmentation, exactly as in a step of training."""

import csv
from functools import partial

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image

from randmix.analysis import augmented as show
from randmix.data import catalog, loader
from randmix.data.augment import Augmentation
from randmix.errors import UserError
from randmix.training import runs

pytestmark = pytest.mark.slow

FILES = ["augmented.csv", "augmented.png", "augmented.svg"]
STEP = 50  # in the second epoch of 1437 // 32 = 44 steps


def config(**overrides):
    return small.config(data__flip=True, **overrides)


def test_it_shows_what_training_is_shown_in_that_step():
    shown = show.at_step(runs.assemble(config()), STEP, 5)
    data = catalog.load("digits", "train")
    order = jax.jit(partial(loader.epoch_order, examples=1437))(0, 1)
    rows = np.asarray(order)[6 * 32 : 6 * 32 + 32]
    np.testing.assert_array_equal(shown.labels, data["label"][rows[:5]])
    np.testing.assert_array_equal(shown.mixed_labels, shown.labels)
    np.testing.assert_array_equal(shown.weights, 1)
    np.testing.assert_allclose(shown.before, data["image"][rows[:5]] / 255, rtol=1e-6)
    augmentation = Augmentation(flip=True, crop_padding=1)
    batch = {name: array[rows] for name, array in data.items()}
    expected = jax.jit(partial(augmentation, seed=0))(batch, step=jnp.int32(STEP))
    np.testing.assert_allclose(shown.after, expected["image"][:5], atol=1e-6)


def test_from_the_command_line_to_a_picture(tmp_path):
    arguments = ("--config.data.crop_padding=1", f"--out={tmp_path}", "--examples=3")
    done = command.run("randmix show", "--config=configs/digits.py", *arguments)
    assert done.status == 0, done.err
    assert sorted(done.out.splitlines()) == [str(tmp_path / name) for name in FILES]
    with (tmp_path / FILES[0]).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["example"] for row in rows] == ["0", "1", "2"]
    assert {row["label_weight"] for row in rows} == {"1"}
    assert all(row["label"] in set("0123456789") for row in rows)
    with Image.open(tmp_path / FILES[1]) as image:
        width, height = image.size
    assert width > height  # three columns, two rows


def test_titles_are_class_names_and_shares():
    images = np.zeros((10, 4, 4, 3), np.float32)
    labels = np.arange(10) % 3
    weights = np.array([0.75] + [1.0] * 9, np.float32)
    figure = show.figure(
        show.Shown(images, images, labels, (labels + 1) % 3, weights), ["a", "b", "c"]
    )
    visible = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in visible]
    # two pairs of rows, the second with two examples
    assert (len(figure.axes), len(visible)) == (32, 20)
    assert titles[0:2] == ["a", "b"]
    assert titles[8:10] == ["0.75 a\n0.25 b", ""]
    assert [axes.get_ylabel() for axes in visible if axes.get_ylabel()] == ["before", "after"] * 2


@pytest.mark.parametrize(
    ("overrides", "arguments", "message"),
    [
        (
            {"batch_size": 8},
            {"examples": 9},
            "--examples: got 9, allowed is 1 to the batch size, 8",
        ),
        ({"data__name": "mnist"}, {}, "mnist is not prepared in"),
        ({"data__mixup": -1.0}, {}, "config.data.mixup: got -1.0, allowed 0 to 1000"),
        (
            {"data__subset": 0.001},
            {},
            "config.batch_size: got 32, allowed up to the 1 training examples",
        ),
    ],
)
def test_a_mistake_is_named(overrides, arguments, message, tmp_path):
    with pytest.raises(UserError) as error:
        show.draw(config(**overrides), tmp_path, **arguments)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=configs/digits.py", "--examples=0"], "--examples=0: expected"),
        (["--config=configs/digits.py", "--config.data.randaugment=rand-x"], "got 'x' in 'rand-x'"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_status_2(arguments, message):
    done = command.run("randmix show", *arguments)
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
