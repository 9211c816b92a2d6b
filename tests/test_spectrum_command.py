"""The depthwise filters of a model, and their pictures from the command line."""

import csv

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from spectra import bank, reference

import randmix
from randmix import convert, masks, models
from randmix.analysis import spectrum
from randmix.config import to_json
from randmix.errors import UserError
from randmix.models import filters
from randmix.workdir.checkpoints import Checkpoints

# ---- the filters of a model


def variables(name, **arguments):
    model = models.build(name, num_classes=3, **arguments)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


def test_layers_are_the_depthwise_kernels_from_the_first_layer_on():
    _, convmixer = variables("convmixer", width=4, depth=2, kernel_size=3, patch_size=2)
    kernels = spectrum.layers(convmixer)
    assert list(kernels) == ["block_00", "block_01"]  # the patch stem is dense
    np.testing.assert_array_equal(
        kernels["block_01"], convmixer["spatial"]["block_01"]["depthwise"]["kernel"]
    )

    _, resnet = variables("resnet", width=2, depth=1, multiplier=2, stem="imagenet")
    shapes = {name: kernel.shape for name, kernel in spectrum.layers(resnet).items()}
    assert list(shapes)[:3] == ["stem", "block_00/conv_1", "block_00/conv_2"]
    assert len(shapes) == 1 + 4 * 2
    assert (shapes["stem"], shapes["block_03/conv_2"]) == ((7, 7, 3, 2), (3, 3, 16, 2))

    deep = {f"block_{i}": {"depthwise": {"kernel": np.ones((1, 1, 1))}} for i in (100, 20, 3)}
    assert list(spectrum.layers({"spatial": deep})) == ["block_3", "block_20", "block_100"]


def test_layers_without_filters_or_with_broken_ones_are_one_line():
    with pytest.raises(UserError, match="model: no depthwise filters in it"):
        spectrum.layers({"spatial": {"stem": {"kernel": np.ones((2, 2, 3, 4))}}})
    broken = {"spatial": {"block_00": {"depthwise": {"kernel": np.full((2, 2, 1), np.inf)}}}}
    with pytest.raises(
        UserError, match=r"^spatial/block_00/depthwise/kernel: got weights that are NaN or inf"
    ):
        spectrum.layers(broken)
    with pytest.raises(UserError, match="model: no depthwise filters in it"):
        spectrum.smooth_filters({"channel": {"kernel": np.ones((4, 4))}}, 2.0)


@pytest.mark.parametrize("keep_norm", [True, False])
def test_smoothing_a_model_smooths_its_depthwise_filters_and_nothing_else(keep_norm):
    _, before = variables("convmixer", width=4, depth=2, kernel_size=3, patch_size=2)
    after = spectrum.smooth_filters(before, 2, keep_norm=keep_norm)
    paths = [f"spatial/block_0{i}/depthwise/kernel" for i in range(2)]
    assert masks.diff(before, after).moved == paths
    expected = filters.smooth(
        before["spatial"]["block_01"]["depthwise"]["kernel"], 2, keep_norm=keep_norm
    )
    np.testing.assert_array_equal(after["spatial"]["block_01"]["depthwise"]["kernel"], expected)
    assert not masks.diff(before, spectrum.smooth_filters(before, 0)).moved


# ---- the command line


def program(*arguments, **options):
    return command.run("randmix spectrum", *arguments, **options)


def table(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_the_filters_of_a_trained_run(tmp_path):
    (tmp_path / "config.json").write_text(to_json(small.config()))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, small.after(2))
    done = program(f"--workdir={tmp_path}")
    assert done.status == 0, done.err
    names = ["envelopes.png", "envelopes.svg", "envelopes.csv", "filters.png", "filters.svg"]
    assert done.out.splitlines() == [str(tmp_path / "spectrum" / name) for name in names]
    rows = table(tmp_path / "spectrum" / "envelopes.csv")
    kernels = spectrum.layers(randmix.load(tmp_path).variables)
    assert [row["layer"] for row in rows] == list(kernels) == ["block_00", "block_01"]
    for row, kernel in zip(rows, kernels.values(), strict=True):
        assert (row["filters"], row["kernel_size"], row["rank"]) == ("16", "3", "9")
        assert float(row["bank_coverage"]) == pytest.approx(
            spectrum.bank_coverage(kernel), rel=1e-4
        )
        envelope = reference(kernel, 512)
        assert float(row["coverage"]) == pytest.approx(
            np.mean(envelope > 0.5 * envelope.max()), abs=1e-4
        )
        assert float(row["mean_coverage"]) == pytest.approx(
            envelope.mean() / envelope.max(), rel=1e-4
        )


@pytest.mark.slow
def test_smoothing_the_filters_of_a_converted_model(tmp_path):
    model, weights = variables("convmixer", width=4, depth=2, kernel_size=3, patch_size=2)
    convert.write_run(tmp_path / "run", model, weights)
    done = program(f"--workdir={tmp_path / 'run'}", "--smoothing=0,2", f"--out={tmp_path / 'out'}")
    assert done.status == 0, done.err
    names = [
        f"{name}.{suffix}"
        for name in ("smoothing", "smoothing_profile")
        for suffix in ("png", "svg", "csv")
    ]
    assert done.out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    rough, smooth = table(tmp_path / "out" / "smoothing.csv")
    assert (rough["index"], smooth["index"], smooth["sigma_pixels"]) == ("0", "2", "1")
    for measure in ("mean_frequency", "effective_coverage", "bank_coverage"):
        assert float(smooth[measure]) < float(rough[measure])
    kernels = np.concatenate(list(spectrum.layers(weights).values()), axis=2)
    assert float(rough["mean_coverage"]) == pytest.approx(
        spectrum.mean_coverage(reference(kernels, 512)), rel=1e-4
    )
    profile = table(tmp_path / "out" / "smoothing_profile.csv")
    assert [row["index"] for row in profile] == ["0"] * 64 + ["2"] * 64


@pytest.mark.slow
def test_random_banks_by_size_and_seed(tmp_path):
    flags = ("--random=4,1", "--kernel_size=3", "--seed=4294967294", "--seeds=2")
    done = program(*flags, cwd=tmp_path, env={"PYTHONPATH": str(command.REPOSITORY)})
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        f"runs/spectrum/random.{suffix}" for suffix in ("png", "svg", "csv")
    ]
    rows = table(tmp_path / "runs" / "spectrum" / "random.csv")
    assert [(row["seed"], row["filters"]) for row in rows] == [
        ("4294967294", "1"),
        ("4294967294", "4"),
        ("4294967295", "1"),
        ("4294967295", "4"),
    ]
    assert [row["rank"] for row in rows] == ["1", "4", "1", "4"]
    expected = spectrum.coverage(reference(bank((3, 3, 4), seed=4294967295), 512))
    assert float(rows[3]["coverage"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_help_is_enough():
    done = program("--help")
    assert done.status == 0
    for words in ("--workdir", "--random", "--smoothing", "--out", "coverage", "Exit status"):
        assert words in done.out


RANDOM = "allowed are whole numbers from 1 to 1,000,000, separated by commas"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --workdir=RUN, --random=1,4,16,64,256 and --folders=RUN,RUN; see --help"),
        (
            ["--workdir=x", "--random=1"],
            "give one of --workdir=RUN, --random=1,4,16,64,256 and --folders=RUN,RUN; see --help",
        ),
        (["--random=0"], f"--random=0: {RANDOM}"),
        (["--random=4,many"], f"--random=4,many: {RANDOM}"),
        (["--random="], f"--random=: {RANDOM}"),
        (
            ["--random=4", "--smoothing=-1"],
            "--smoothing=-1: allowed are numbers from 0, separated by commas",
        ),
        (
            ["--random=4,8", "--smoothing=1"],
            "--smoothing plots one bank of one seed: give --random a single size, and no --seeds",
        ),
        (
            ["--random=4", "--seed=4294967295", "--seeds=2"],
            "--seeds: got 2 from --seed=4294967295 on, allowed up to 1, "
            "since the largest seed is 4294967295",
        ),
        (
            ["--workdir=x", "--kernel_size=3"],
            "--kernel_size applies to --random only, got --workdir",
        ),
        (
            ["--workdir=/nowhere/run"],
            "/nowhere/run: no run there (config.json is missing); give the --workdir of a run",
        ),
        (
            ["--random=1", "--kernel_size=2", "--seeds=1", "--out=/dev/null/out"],
            "/dev/null/out: can't be written (Not a directory); "
            "give a folder that you may write to",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message):
    done = program(*arguments)
    assert (done.status, done.out, done.err) == (2, "", f"randmix: {message}\n")


def test_a_run_without_a_checkpoint_is_one_line_and_status_2(tmp_path):
    (tmp_path / "config.json").write_text(to_json(small.config()))
    done = program(f"--workdir={tmp_path}")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"randmix: {tmp_path / 'checkpoints'}: no checkpoint there; train this workdir\n"
    )
