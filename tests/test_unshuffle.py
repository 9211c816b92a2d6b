"""Complete runs of un-shuffling: exact resumption, PSNR per image, pictures, refused configs."""

import csv
import json
from types import SimpleNamespace

import command
import jax
import numpy as np
import pytest
import small
from logs import lines

import randmix
from randmix import config as configs
from randmix import masks
from randmix.analysis import unshuffle
from randmix.data import catalog
from randmix.errors import UserError
from randmix.runtime.preemption import Preempted
from randmix.training import loop as train
from randmix.training import runs, tasks

pytestmark = pytest.mark.slow

CONFIG = "--config=configs/unshuffle.py"
FILES = ["reconstructions.csv", "reconstructions.png", "reconstructions.svg"]


def config(**overrides):
    return small.config(task="unshuffling", model__patch_size=1, **overrides)


def run(workdir, **overrides):
    return train.train(config(**overrides), workdir, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir)


def test_a_run_writes_its_psnr_and_permutation(whole):
    workdir, result = whole
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints", "config.json", "data.json", "masks.txt", "metrics.jsonl", "permutation.npy",
        "result.json", "tensorboard",
    }  # fmt: skip
    np.testing.assert_array_equal(
        np.load(workdir / "permutation.npy"), tasks.pixel_permutation(0, 8, 8)
    )
    train_line, test_line = lines(workdir)[0], lines(workdir)[-1]
    assert set(train_line) == {"step", "epoch", "train_loss", "train_psnr", "learning_rate"}
    assert test_line == {"step": 6, **result["metrics"]}
    assert set(result["metrics"]) == {"test_loss", "test_psnr"}
    frozen = small.initial_state(task="unshuffling", model__patch_size=1, mode="chans").params[
        "spatial"
    ]
    assert not masks.diff(frozen, randmix.load(workdir).variables["spatial"]).moved


def test_the_test_psnr_is_the_mean_over_images_each_counted_once(whole):
    workdir, result = whole
    loaded = randmix.load(workdir)
    # 360 images in batches of 32: the last batch is padded
    truth = catalog.load("digits", "test")["image"] / 255
    shuffled = truth.reshape(360, 64)[:, np.load(workdir / "permutation.npy")].reshape(truth.shape)
    outputs = jax.jit(loaded.model.apply)(loaded.variables, shuffled.astype(np.float32))
    errors = ((np.asarray(outputs, np.float64) - truth) ** 2).mean((1, 2, 3))
    assert result["metrics"]["test_loss"] == pytest.approx(errors.mean(), rel=1e-5)
    assert result["metrics"]["test_psnr"] == pytest.approx(-10 * np.log10(errors).mean(), rel=1e-5)
    # the PSNR of the mean error differs
    assert abs(np.log10(errors).mean() - np.log10(errors.mean())) > 1e-3
    drawn = unshuffle.reconstructions([workdir], examples=3)[-1]
    np.testing.assert_allclose(drawn.images, outputs[:3], rtol=1e-4, atol=1e-6)


def test_a_run_says_what_is_within_reach_and_what_the_mean_image_scores(
    whole, capsys, caplog, monkeypatch
):
    train_images, test_images = (
        catalog.load("digits", split)["image"] / 255 for split in ("train", "test")
    )

    def psnr(examples):
        errors = ((test_images - train_images[:examples].mean(0)) ** 2).mean((1, 2, 3))
        return pytest.approx(-10 * np.log10(errors).mean(), rel=1e-5)

    _, result = whole
    # two 3 x 3 filters reach 2 pixels: 34 of the 64 pairs of rows
    assert result["unshuffling"] == {
        "reach": (34 / 64) ** 2,
        "permutation_reach": result["unshuffling"]["permutation_reach"],
        "mean_image_psnr": psnr(None),
    }
    assert result["unshuffling"]["mean_image_psnr"] == pytest.approx(11.43, abs=0.01)
    parts = runs.assemble(config(data__subset=0.5))
    splits = parts.data.open()
    known = train.announce(parts, splits)
    assert known["unshuffling"]["mean_image_psnr"] == psnr(718)
    here = 100 * known["unshuffling"]["permutation_reach"]
    assert capsys.readouterr().out == (
        f"unshuffling: {here:.1f} % of the pixels are within reach (28.2 % over all permutations); "
        f"the mean training image scores {known['unshuffling']['mean_image_psnr']:.2f} dB\n"
    )
    assert caplog.messages == [
        "unshuffling: got a reach of 28.2 %, needed for a fair comparison are 90 % or more; raise "
        "config.model.depth or config.model.kernel_size"
    ]
    monkeypatch.setattr(train.distributed, "is_primary", lambda: False)
    assert train.announce(parts, splits) == known
    assert capsys.readouterr().out == ""
    enough = runs.assemble(config(model__kernel_size=9))
    assert enough.step.task.prospects(enough.step.model, *splits, 10).warning is None
    classifier = runs.assemble(small.config())
    assert train.announce(classifier, splits) == {}


def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path, monkeypatch):
    reference, result = whole
    with monkeypatch.context() as patch:
        small.stop_after(patch, 3)
        with pytest.raises(Preempted, match="stopped and saved at step 3 of 6"):
            run(tmp_path)
    assert unshuffle.reconstructions([tmp_path], examples=1)[-1].label == "chans\nat step 3"
    assert run(tmp_path)["metrics"] == result["metrics"]
    one, other = randmix.load(reference).variables, randmix.load(tmp_path).variables
    assert not masks.diff(one, other).moved
    assert lines(tmp_path) == lines(reference)


def test_from_the_command_line_to_a_picture_of_two_runs(whole, tmp_path):
    workdir = tmp_path / "full"
    done = command.run(
        "randmix.main", f"{CONFIG}:tiny", "--config.mode=full", f"--workdir={workdir}"
    )
    assert done.status == 0, done.err
    assert all((workdir / name).exists() for name in FILES)
    table, result = done.out.splitlines(), json.loads((workdir / "result.json").read_text())
    assert table[2] == (
        "unshuffling: 95.3 % of the pixels are within reach (93.8 % over all permutations); the "
        "mean training image scores 11.43 dB"
    )
    assert table[4].startswith("step 100/")
    assert " dB  " in table[4]
    assert [cell.strip() for cell in table[-4].split("┃")[1:3]] == ["mode", "test psnr"]
    assert table[-2].split("│")[2].strip() == f"{result['metrics']['test_psnr']:.2f} dB"
    train_images, test_images = (
        catalog.load("digits", split)["image"] / 255 for split in ("train", "test")
    )
    of_mean_image = ((test_images - train_images.mean(0)) ** 2).mean((1, 2, 3))
    assert result["metrics"]["test_psnr"] > 5 - 10 * np.log10(of_mean_image).mean()
    # Equal in another process: the permutation depends on its seed alone.
    permutation = np.load(workdir / "permutation.npy")
    np.testing.assert_array_equal(permutation, tasks.pixel_permutation(0, 8, 8))

    workdirs = [workdir, whole[0]]
    argument = f"--workdirs={workdirs[0]},{workdirs[1]}"
    done = command.run("randmix unshuffle", argument, "--examples=3", f"--out={tmp_path / 'both'}")
    assert done.status == 0, done.err
    assert sorted(done.out.splitlines()) == [str(tmp_path / "both" / name) for name in FILES]
    with (tmp_path / "both" / FILES[0]).open() as file:
        rows = list(csv.DictReader(file))
    original, shuffled, *given_back = unshuffle.reconstructions(workdirs, examples=3)
    linear = [f"linear regression, reach {share} %" for share in (95.3, 34.4)]
    sources = ["mean training image", *linear, *workdirs]
    assert [(row["run"], row["image"]) for row in rows] == [
        (str(source), str(i)) for source in sources for i in range(3)
    ]
    truth = test_images[:3]
    np.testing.assert_allclose(original.images, truth, rtol=1e-6)
    expected = truth.reshape(3, 64)[:, permutation].reshape(truth.shape)
    np.testing.assert_allclose(shuffled.images, expected, rtol=1e-6)
    psnr = [-10 * np.log10(((row.images - truth) ** 2).mean((1, 2, 3))) for row in given_back]
    np.testing.assert_allclose([float(row["psnr"]) for row in rows], np.ravel(psnr), rtol=1e-4)
    for row, mode, metrics in zip(
        given_back[3:], ("full", "chans"), (result, whole[1]), strict=True
    ):
        assert row.label.startswith(f"{mode}\n")
        assert row.label.endswith(f"\nmean {metrics['metrics']['test_psnr']:.2f} dB")


def test_two_baselines_stand_above_the_runs(whole):
    workdir, result = whole
    original, _, mean, linear, run = unshuffle.reconstructions([workdir], examples=3)
    train_images = catalog.load("digits", "train")["image"] / 255
    np.testing.assert_allclose(mean.images, np.stack([train_images.mean(0)] * 3), rtol=1e-6)
    assert mean.label == "mean training image\nmean 11.43 dB"
    assert mean.label.endswith(f" {result['unshuffling']['mean_image_psnr']:.2f} dB")
    assert mean.mean_psnr == pytest.approx(result["unshuffling"]["mean_image_psnr"], rel=1e-5)
    assert (original.mean_psnr, run.mean_psnr) == (None, None)
    assert linear.label.endswith(f"mean {linear.mean_psnr:.2f} dB")
    share = result["unshuffling"]["permutation_reach"]
    assert linear.label.startswith(f"linear regression\nreach {100 * share:.1f} %\nmean ")
    exact = (linear.images == original.images).all(axis=(0, 3))
    assert share <= exact.mean() < 1  # some pixels are 0 in every image
    for row in (mean, linear, run):
        errors = ((row.images - original.images) ** 2).mean((1, 2, 3))
        np.testing.assert_allclose(row.psnr, -10 * np.log10(errors), rtol=1e-4)
    assert mean.psnr.mean() < linear.psnr.mean()


def test_photographs_that_are_streamed_have_a_reach_but_no_baselines():
    images = SimpleNamespace(streamed=True, image_shape=(8, 8, 3))
    split = SimpleNamespace(data_set=images)
    parts = runs.assemble(config(model__kernel_size=9))
    known = parts.step.task.prospects(parts.step.model, split, split, 10)
    assert known == (
        {"reach": 1, "permutation_reach": 1},
        "unshuffling: 100.0 % of the pixels are within reach (100.0 % over all permutations)",
        None,
    )
    permutation = parts.step.task.constants["permutation"]
    assert not [*unshuffle._baselines(split, split, permutation, [config()], 1)]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_clipped_pixels_labels_and_the_psnr_of_each_image(channels):
    images = np.random.default_rng(0).random((2, 4, 5, channels), np.float32) * 3 - 1
    rows = [
        unshuffle.Row("original", images),
        unshuffle.Row("chans", images / 2, np.array([20.04, np.inf])),
    ]
    axes = np.reshape(unshuffle.figure(rows).axes, (2, 2))
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["original", "chans"]
    assert [axis.get_xlabel() for axis in axes.flat] == ["", "", "20.0 dB", "inf dB"]
    for row, drawn in zip(rows, axes, strict=True):
        for image, axis in zip(row.images, drawn, strict=True):
            shown = np.asarray(axis.images[0].get_array())
            np.testing.assert_array_equal(shown.reshape(image.shape), image.clip(0, 1))
            assert axis.images[0].get_clim() == (0, 1)


def test_runs_are_told_apart_by_what_differs():
    one, other = config(), config(train="role('head')", model__width=8, log_every=9)
    assert unshuffle._labels([one]) == ["chans"]
    assert unshuffle._labels([one, other]) == [
        "chans\nmodel.width 16",
        "role('head')\nmodel.width 8",
    ]
    with_own_key = config()
    with with_own_key.unlocked():
        with_own_key.user.clip = 3
    assert unshuffle._labels([one, with_own_key]) == ["chans", "chans\nuser.clip 3"]


@pytest.mark.parametrize(
    ("name", "data", "size"),
    [
        ("laptop", "digits", (64, 4)),
        ("mnist", "mnist", (64, 8)),
        ("fashion_mnist", "fashion_mnist", (64, 8)),
        ("cifar10", "cifar10", (128, 8)),
        ("large", "cifar10", (512, 16)),
        ("tiny", "digits", (32, 2)),
    ],
)
def test_each_variant_builds_the_model_for_its_data_set(name, data, size):
    parts = runs.assemble(configs.recipe(f"unshuffle:{name}"))
    model, shape = parts.step.model, parts.data.dataset.image_shape
    assert (parts.data.dataset.name, (model.width, model.depth)) == (data, size)
    assert model.kernel_size == 7
    variables = {**parts.abstract_state(small.sharding.make_mesh()).params}
    assert variables["head"]["projection"]["kernel"].shape == (size[0], shape[2])
    assert len(parts.step.task.constants["permutation"]) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__patch_size": 2}, "patch_size: got 2, allowed 1 with head 'image'"),
        (
            {"label_smoothing": 0.1},
            "config.label_smoothing: got 0.1, allowed 0 with the task unshuffling",
        ),
        ({"permutation_seed": -1}, "config.permutation_seed: got -1, allowed 0 to 4294967295"),
    ],
)
def test_an_invalid_config_is_refused(overrides, message):
    with pytest.raises(UserError) as error:
        runs.assemble(small.config(**{"task": "unshuffling", "model__patch_size": 1, **overrides}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_resnet_cannot_unshuffle():
    given = randmix.config.default("resnet")
    given.task = "unshuffling"
    with pytest.raises(
        UserError, match="got 'resnet', allowed with the task unshuffling is convmixer"
    ):
        runs.assemble(given)


def test_runs_that_do_not_fit_into_one_picture(whole, tmp_path):
    workdir, _ = whole
    for name, overrides in (
        ("seed", {"permutation_seed": 1}),
        ("classifier", {"task": "classification"}),
    ):
        text = randmix.config.to_json(config().copy_and_resolve_references())
        saved = json.loads(text) | overrides
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError) as error:
        unshuffle.draw([workdir, tmp_path / "seed"], tmp_path)
    assert str(error.value) == (
        f"{workdir} and {tmp_path / 'seed'}: config.permutation_seed: got 0 and 1, "
        "allowed in one picture are runs that share the data set and the permutation; "
        "draw them separately"
    )
    with pytest.raises(
        UserError,
        match="got a run with the task 'classification', allowed are runs with the task 'u",
    ):
        unshuffle.draw([tmp_path / "classifier"], tmp_path)
    with pytest.raises(UserError, match="no run there"):
        unshuffle.draw([tmp_path / "nothing"], tmp_path)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("randmix unshuffle", [], "--workdirs is missing; list the runs' folders"),
        (
            "randmix unshuffle",
            ["--workdirs=/nowhere"],
            "/nowhere: no run there (config.json is missing)",
        ),
        ("randmix unshuffle", ["--workdirs=a", "--examples=0"], "--examples=0"),
        ("randmix.main", [f"{CONFIG}:minst"], "variant: got 'minst'"),
        ("randmix.main", [CONFIG, "--config.task=shuffling"], "did you mean 'unshuffling'?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(module, arguments, message, tmp_path):
    extra = [f"--workdir={tmp_path / 'run'}"] if module == "randmix.main" else []
    done = command.run(module, *arguments, *extra)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert message in done.err
