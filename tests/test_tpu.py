"""A run's steps, compiled for a Cloud TPU slice on a machine without one."""

import json
import os
import subprocess
import sys

import command
import pytest

pytestmark = pytest.mark.slow


# A minimal step: the TPU's compiler is slow.
SMALL = (
    "--config=configs/digits.py",
    "--config.model.width=128",
    "--config.model.depth=1",
    "--config.precision=bfloat16",
    "--config.data.data_dir=/nonexistent",  # nothing is read
)


def compile_for(name, *arguments, workdir):
    return command.run(
        "randmix.main", *SMALL, *arguments, f"--compile_for={name}", f"--workdir={workdir}"
    )


@pytest.fixture(scope="module")
def chans(tmp_path_factory):
    """Chans steps compiled for four chips: exit and output, compile.json, the train step's text."""
    workdir = tmp_path_factory.mktemp("chans")
    done = compile_for("v5e:2x2", workdir=workdir)
    assert done.status == 0, done.err
    return (
        done,
        json.loads((workdir / "compile.json").read_text()),
        (workdir / "compiled_train.txt").read_text(),
    )


def test_the_needs_of_each_step_are_reported(chans):
    done, content, _ = chans
    assert (content["topology"], content["chips"], content["batch_size"]) == ("v5e:2x2", 4, 64)
    train, evaluation = content["train"], content["eval"]
    for step in (train, evaluation):
        assert (
            0
            <= step["temporary_bytes"]
            < step["memory_bytes"]
            < step["limit_bytes"]
            == 15.75 * 2**30
        )
        assert step["seconds"] == max(step["flops"] / 197e12, step["bytes_accessed"] / 819e9)
        assert step["compile_seconds"] > 0
    # 16 images per chip: 64 pixels' products of 128 x 128 channels, forward and both gradients.
    assert train["flops"] > 3 * 2 * 16 * 64 * 128 * 128 > evaluation["flops"] / 3
    for line in (
        "memory, GiB",
        "bytes moved, GB",
        "GFLOP",
        "all-reduce",
        "cloud.google.com/tpu/docs/v5e",
    ):
        assert line in done.out
    assert content["device"] == {"kind": "TPU v5 lite", "platform": "tpu", "count": 4}


def test_a_norm_exchanges_its_sums_once_each_way(chans):
    _, content, _ = chans
    # Three norms, forward and backward, and gradients with metrics at the end.
    assert content["train"]["collectives"] == {"all-reduce": 2 * 3 + 1}


def test_the_program_is_the_tpus_own_and_frozen_filters_cost_no_gradient(chans):
    _, _, text = chans
    assert "feature_group_count=128" in text  # the grouped convolution, not the CPU's shifted sums
    assert "depthwise_weight_gradient" not in text


def test_the_data_set_is_no_part_of_the_program(chans):
    _, _, text = chans
    assert "u8[1437,8,8,1]" in text
    assert (
        max(map(len, text.splitlines())) < 20_000
    )  # a constant would be written out digit by digit


def test_a_single_chip_exchanges_nothing_and_learned_filters_cost_a_gradient(tmp_path):
    done = compile_for("v5e:1x1", "--config.mode=full", workdir=tmp_path)
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "compile.json").read_text())["train"]["collectives"] == {}
    assert "depthwise_weight_gradient" in (tmp_path / "compiled_train.txt").read_text()


def test_a_step_that_does_not_fit_is_reported(tmp_path):
    # 65,536 x 65,536 pointwise weights in float32 alone are 16 GiB, with any batch.
    done = compile_for("v5e:1x1", "--config.model.width=65536", workdir=tmp_path)
    assert done.status == 2
    content = json.loads((tmp_path / "compile.json").read_text())
    assert content["train"]["memory_bytes"] > content["train"]["limit_bytes"]
    assert content["batch_size_that_fits"] is None
    assert done.err.startswith("randmix: config.batch_size: got 64, whose step 'train' needs ")
    assert done.err.endswith(
        " GiB of each of the 1 chips of v5e:1x1, allowed 15.75; "
        "no smaller batch was found that fits; use larger chips\n"
    )


def test_a_slice_that_does_not_exist(tmp_path):
    done = compile_for("v5e:4x5", workdir=tmp_path / "run")
    assert done.status == 2
    assert done.err.startswith("randmix: --compile_for: got 'v5e:4x5', allowed v4:2x2x1, ")
    assert done.err.endswith("did you mean 'v5e:4x8'?\n")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_chips_cannot_share(tmp_path):
    done = compile_for("v5e:2x2", "--config.batch_size=66", workdir=tmp_path / "run")
    assert (done.status, done.err) == (
        2,
        "randmix: config.batch_size: got 66, which 4 devices can't share evenly; "
        "allowed is a multiple of 4\n",
    )


@pytest.mark.parametrize(
    "code",
    [
        "import randmix, jax; randmix.load; jax.devices()",
        "import jax, libtpu, randmix; randmix.load; jax.devices()",
        "import randmix.analysis.augmented, jax; from randmix.runtime import cli; "
        "cli.run(lambda: jax.devices() and None)",
    ],
)
def test_without_a_tpu_libtpu_prints_nothing(code):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_PLATFORMS", "TPU_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
