"""The benchmarks of a GPU on a CPU: what is measured is right, and one command runs it all."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from command import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import torch_depthwise

from randmix.ops.depthwise import depthwise

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("k", [4, 5])
def test_pytorchs_depthwise_parts_are_ours(k):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 2, 5, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(k, k, 3)).astype(np.float32)
    y, pull = jax.vjp(depthwise, x, kernel)
    names = ("forward", "input gradient", "weight gradient")
    expected = dict(zip(names, (y, *pull(g)), strict=True))
    tensors = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(g).permute(0, 3, 1, 2)
    weight = torch.tensor(kernel).permute(2, 0, 1)[:, None]
    for part, (function, arrays) in torch_depthwise.parts(tensors[0], weight, tensors[1]).items():
        got = function(*arrays)
        got = got[:, 0].permute(1, 2, 0) if part == "weight gradient" else got.permute(0, 2, 3, 1)
        np.testing.assert_allclose(got.numpy(), expected[part], rtol=1e-5, atol=2e-5)


def run(*arguments):
    """Standard output and error, and the exit status, of the command."""
    # PyTorch's and XLA's plain models broadcast, which the tests' own settings refuse.
    strict = ("JAX_NUMPY_RANK_PROMOTION", "JAX_NUMPY_DTYPE_PROMOTION")
    with subprocess.Popen(
        [sys.executable, "benchmarks/gpu.py", *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in strict},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            return *process.communicate(timeout=3600), process.returncode
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


def test_without_a_gpu_one_line_says_so(tmp_path):
    out, err, status = run(f"--out={tmp_path / 'gpu'}")
    assert status == 2
    assert err == "gpu: JAX is missing or sees no GPU; --small runs anyway\n"
    assert out == ""
    assert not (tmp_path / "gpu").exists()


def test_small_runs_all_parts_anywhere(tmp_path):
    out, err, status = run("--small", f"--out={tmp_path}", "--minutes=20")
    assert status == 0, err
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    targets = {row["target"].split(":")[0]: row for row in rows}
    missing = [target for target, row in targets.items() if row["measured"] == "nothing"]
    # bfloat16 is small without torch.compile, and no ConvMixer-512/8 is small.
    assert missing == ["step / PyTorch's faster, bfloat16", "cores to feed ConvMixer-512/8"]
    assert targets["resumed and undisturbed run differ"]["met"] == "yes"
    methods = json.loads((tmp_path / "depthwise.json").read_text())["rows"]
    assert {row["method"] for row in methods} == {"grouped", "shift_sum", "pallas"}
    assert not any(row["wrong"] or row["note"] for row in methods)
