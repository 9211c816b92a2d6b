"""Compiling for TPUs, as far as it goes without libtpu."""

import dataclasses

import jax
import pytest
import small

from randmix.errors import UserError
from randmix.runtime import host, sharding
from randmix.training import aot, tpu


@pytest.mark.parametrize(("fixed", "allowed"), [(0, 90), (40, 60), (99, None)])
def test_the_search_for_a_batch_ends_at_one_that_was_compiled(fixed, allowed, monkeypatch):
    """A chip of 100 bytes, and steps that need ``fixed`` bytes plus one per example."""
    chip = dataclasses.replace(tpu.CHIPS["v5e"], memory_bytes=100)
    compiled = []

    def lower_steps(parts, mesh):
        return {"train": parts.step.batch_size}

    def compile_step(batch_size, where):
        compiled.append(batch_size)
        memory = fixed + batch_size
        return aot.Needs(memory, 100, 1.0, flops=None if memory > 100 else 1.0), None

    monkeypatch.setattr(aot.compiled, "lower_steps", lower_steps)
    monkeypatch.setattr(aot, "_compile", compile_step)
    parts, where, mesh = (
        small.parts(batch_size=640),
        tpu.Slice(chip, "2x2"),
        sharding.make_mesh(jax.devices()[:4]),
    )
    needs = {"train": aot.Needs(fixed + 640, 100, 1.0)}
    found = aot.batch_size_that_fits(parts, mesh, where, needs)
    if allowed is None:
        assert found is None
    else:
        assert found == compiled[-1]
        assert 0.5 * allowed < found <= allowed + 8
        assert found % 4 == 0
    assert len(compiled) <= 3


def test_without_libtpu_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs libtpu, .* run `pip install "jax\[tpu\]"`'):
        aot.make_mesh(tpu.parse("v5e:2x2"))


def test_compiling_for_tpus_leaves_local_tpus_unused(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    for name in (
        "TPU_SKIP_MDS_QUERY",
        "TPU_ACCELERATOR_TYPE",
        "TPU_WORKER_HOSTNAMES",
        "ALLOW_MULTIPLE_LIBTPU_LOAD",
    ):
        monkeypatch.setenv(name, "")
    host.only_compile_for_tpu()
    assert host.os.environ["JAX_PLATFORMS"] == "cpu"
