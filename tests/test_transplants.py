"""Filters from a finished run: which layers get which, and what identifies a run with them."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small

import randmix
from randmix import config as configs
from randmix import convert, models
from randmix.analysis import spectrum
from randmix.errors import UserError
from randmix.models import filters, layers, torch_weights
from randmix.runtime.preemption import Preempted
from randmix.training import loop, runs, transplants
from randmix.workdir import artifacts

pytestmark = pytest.mark.slow

# The beginning of an .npy file.
NPY = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }".ljust(127)
    + b"\n"
)
SIZES = {"width": 16, "depth": 2, "kernel_size": 3, "patch_size": 2}  # those of tests/small.py


def write_source(folder, seed=0):
    """Writes converted weights; returns their depthwise kernels by path."""
    model = models.build("convmixer", num_classes=3, **SIZES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rng = np.random.default_rng(seed)
    weights = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    convert.write_run(folder, model, weights)
    return {
        f"spatial/{name}/depthwise/kernel": kernel
        for name, kernel in spectrum.layers(weights).items()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    return folder, write_source(folder)


# ---- which layers get which filters


def transplant(kernels, **settings):
    return filters.build(filters.Transplant("0" * 16, kernels), **settings)


def numbered(*shapes):
    """Kernels by path whose filters are constant, each of another value."""
    values = iter(range(1, 1000))
    return {
        f"spatial/block_{i:02d}/depthwise/kernel": np.stack(
            [np.full(shape[:2], next(values), np.float32) for _ in range(np.prod(shape[2:]))], -1
        ).reshape(shape)
        for i, shape in enumerate(shapes)
    }


def test_a_layer_takes_the_filters_of_the_layer_of_its_path_and_shape():
    kernels = numbered((3, 3, 4), (5, 5, 4), (3, 3, 4))
    bank = transplant(kernels)
    for path, kernel in kernels.items():
        np.testing.assert_array_equal(bank.at(path)(None, kernel.shape, jnp.float32), kernel)


def test_a_layer_says_its_path():
    kernels = {"spatial/kernel": numbered((3, 3, 4))["spatial/block_00/depthwise/kernel"]}
    layer = layers.Depthwise(3, transplant(kernels))
    init = jax.jit(lambda key: layer.init(key, jnp.zeros((1, 4, 4, 4)))["spatial"]["kernel"])
    np.testing.assert_array_equal(init(jax.random.key(0)), kernels["spatial/kernel"])


def test_transplanted_filters_can_be_smoothed():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4), np.float32)
    smoothed = transplant({"a": kernel}, index=2).at("a")(None, kernel.shape, jnp.float32)
    np.testing.assert_array_equal(smoothed, filters.smooth(kernel, 2))


@pytest.mark.parametrize("shape", [(3, 3, 50), (3, 3, 10, 5)])
def test_any_other_layer_draws_from_all_filters_of_its_side(shape):
    bank = transplant(numbered((3, 3, 4), (5, 5, 4), (3, 3, 2, 3)))
    found, other = (
        np.asarray(bank.at("spatial/block_00/depthwise/kernel")(jax.random.key(i), shape, float))
        for i in range(2)
    )
    assert found.shape == shape
    assert (found == found[:1, :1]).all()  # whole filters
    assert set(found[0, 0].ravel().astype(int)) == {1, 2, 3, 4, *range(9, 15)}
    assert (found != other).any()


def test_filters_of_another_side_are_refused_in_one_line():
    with pytest.raises(UserError) as error:
        transplant(numbered((3, 3, 4), (5, 5, 4)))(jax.random.key(0), (7, 7, 2))
    assert str(error.value) == (
        "filters: got transplanted filters of side 3, 5 for a layer of side 7; "
        "set kernel_size to that of their model"
    )
    with pytest.raises(UserError, match="filter rank: got 2 for 'transplanted filters', whose"):
        transplant({}, rank=2)


def test_a_transplant_is_its_digest():
    one, other = (filters.Transplant("a" * 16, kernels) for kernels in (None, numbered((3, 3, 1))))
    assert one == other
    assert hash(filters.build(one)) == hash(filters.build(other))
    assert one != filters.Transplant("b" * 16, None)
    assert np.isnan(filters.build(one)(jax.random.key(0), (3, 3, 2))).all()


# ---- what identifies a run


def test_the_hash_is_that_of_paths_shapes_and_values():
    kernels = numbered((3, 3, 4), (3, 3, 4))
    first, second = kernels
    found = transplants.digest_of(kernels)
    assert found == transplants.digest_of(dict(reversed(kernels.items())))
    changed = {**kernels, second: kernels[second] + np.float32(1e-6)}
    swapped = {first: kernels[second], second: kernels[first]}
    shaped = {**kernels, first: kernels[first].reshape(3, 3, 2, 2)}
    others = [transplants.digest_of(other) for other in (changed, swapped, shaped)]
    assert len({found, *others}) == 4


def test_a_config_is_identified_by_the_hash_or_else_by_the_text():
    def config(text):
        return small.config(model__filters=text)

    a, b = (config(f"from={folder}@{'a' * 16}") for folder in ("runs/a", "/tmp/x@y"))
    assert configs.fingerprint(a) == configs.fingerprint(b)
    assert not configs.differences(a, b)
    assert not configs.differences(configs.identity(a), b)  # as a manifest has it
    other = config(f"from=runs/a@{'b' * 16}")
    assert configs.differences(a, other) == [
        f"model.filters: 'from=@{'a' * 16}' -> 'from=@{'b' * 16}'"
    ]
    unread = [configs.fingerprint(config(f"from=runs/{name}")) for name in "aab"]
    assert unread[0] == unread[1] != unread[2]


def test_a_run_has_the_hash_of_the_filters_wherever_they_are(source, tmp_path):
    folder, kernels = source
    shutil.copytree(folder, tmp_path / "copy")
    first, second = (
        runs.resolve(small.config(model__filters=f"from={place}"))[0]
        for place in (folder, tmp_path / "copy")
    )
    assert first.model.filters == f"from={folder}@{transplants.digest_of(kernels)}"
    assert configs.fingerprint(first) == configs.fingerprint(second)
    write_source(tmp_path / "edited", seed=1)
    edited, _ = runs.resolve(small.config(model__filters=f"from={tmp_path / 'edited'}"))
    assert configs.fingerprint(edited) != configs.fingerprint(first)
    bank = runs.assemble(small.config(model__filters=f"from={folder}")).step.model.filters.bank
    assert bank.kernels.keys() == kernels.keys()


def test_a_file_serves_as_the_run_it_comes_from(source, tmp_path):
    folder, kernels = source
    file = tmp_path / "kernels.npz"
    np.savez(file, **kernels, **{"channel/block_00/pointwise/kernel": np.ones((1, 1, 2, 2))})
    of_run = transplants.find(f"from={folder}")
    of_file = transplants.find(f"from={file}")
    assert of_file.missing is None
    assert of_file.bank == of_run.bank
    assert of_file.text == f"from={file}@{of_run.bank.digest}"
    for path, kernel in kernels.items():
        np.testing.assert_array_equal(of_file.bank.kernels[path], kernel)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"PK", "can't be read as an .npz file"),
        (b"", "can't be read as an .npz file"),
        (NPY, "can't be read as an .npz file"),
        ({"depthwise": np.ones(2)}, "holds no arrays at spatial/.../depthwise/kernel"),
    ],
)
def test_a_file_without_filters_is_named(content, message, tmp_path):
    file = tmp_path / "kernels.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        np.savez(file, **content)
    assert f"{file}: {message}" in transplants.find(f"from={file}").missing


def test_weights_of_pytorch_serve_as_the_run_that_they_convert_to(tmp_path):
    model = models.build("convmixer", num_classes=3, **SIZES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    convert.write_run(tmp_path / "run", model, weights)
    expected = transplants.find(f"from={tmp_path / 'run'}").bank
    for naming in torch_weights.NAMINGS:
        file = tmp_path / f"{naming}.safetensors"
        safetensors.numpy.save_file(randmix.convmixer_to_torch(model, weights, naming), file)
        found = transplants.find(f"from={file}")
        assert found.missing is None
        assert found.text == f"from={file}@{expected.digest}"
        for path, kernel in expected.kernels.items():
            np.testing.assert_array_equal(found.bank.kernels[path], kernel)


def test_a_layer_draws_from_the_depthwise_kernels_of_any_model_with_the_runs_seed(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        "stem.0.weight": (4, 1, 3, 3),  # dense, on grey images
        "stages.0.blocks.0.conv_dw.weight": (4, 1, 3, 3),
        "stages.1.blocks.0.conv_dw.weight": (8, 1, 3, 3),
        "stages.1.blocks.0.mlp.fc1.weight": (8, 8, 1, 1),
        "stages.1.downsample.1.weight": (8, 4, 3, 3),
        "stages.2.blocks.0.conv_dw.weight": (8, 1, 7, 7),
        "stages.2.blocks.0.dwconv_w.weight": (8, 1, 1, 7),
        "stages.2.blocks.0.scale.weight": (8, 1, 1, 1),
    }
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(arrays, file)
    first, again, other = (
        runs.assemble(small.config(model__filters=f"from={file}", seed=seed)).init_state(seed)
        for seed in (0, 0, 1)
    )
    kernels = [spectrum.layers({**state.params}) for state in (first, again, other)]
    pool = [arrays[f"stages.{i}.blocks.0.conv_dw.weight"].reshape(-1, 3, 3) for i in (0, 1)]
    pool = {each.tobytes() for each in np.concatenate(pool)}
    for name, kernel in kernels[0].items():
        assert {np.ascontiguousarray(kernel[:, :, i]).tobytes() for i in range(16)} <= pool
        np.testing.assert_array_equal(kernel, kernels[1][name])
        assert (kernel != kernels[2][name]).any()
    with pytest.raises(UserError, match="got transplanted filters of side 3, 7 for a layer of si"):
        runs.assemble(small.config(model__filters=f"from={file}", model__kernel_size=5))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "no such file"),
        (b"no weights", "can't be read (Error while deserializing header"),
        ({}, "got an empty mapping, expected arrays by name; give model.state_dict()"),
        (
            {"fc": np.ones((2, 3), np.float32)},
            "got 1 arrays, expected depthwise kernels (C, 1, k, k) with k > 1; give the weights of "
            "a model that has them, such as a ConvMixer or a ConvNeXt",
        ),
        (
            {"conv1.weight": np.ones((2, 1, 3, 3), np.float32), "fc": np.ones(3, np.float32)},
            "got 2 arrays, the first kernel conv1.weight (2, 1, 3, 3), expected depthwise kernels",
        ),
        (
            {"dw": np.full((2, 1, 3, 3), np.nan, np.float32)},
            "dw: got 18 of 18 values NaN or infinite, allowed finite ones",
        ),
        (
            {"dw": np.ones((2, 1, 3, 3))},
            "dw: got float64, allowed float32, float16, bfloat16; give model.float().state_dict()",
        ),
    ],
)
def test_weights_without_filters_are_named(arrays, message, tmp_path):
    file = tmp_path / "weights.safetensors"
    if isinstance(arrays, bytes):
        file.write_bytes(arrays)
    elif arrays is not None:
        safetensors.numpy.save_file(arrays, file)
    missing = transplants.find(f"from={file}").missing
    assert missing.startswith(f"{file}: {message}")
    assert "\n" not in missing


def test_a_new_run_needs_its_source_and_a_plan_does_not(source, tmp_path):
    folder, _ = source
    config = small.config(model__filters=f"from={tmp_path / 'none'}")
    assert runs.resolve(config)[0].model.filters == config.model.filters
    assert runs.assemble(config).record.summary.frozen
    missing = f"{tmp_path / 'none'}: no finished run there; train it first, or give another folder"
    with pytest.raises(UserError) as error:
        runs.assemble(config, tmp_path / "new")
    assert str(error.value) == (
        f"config.model.filters: got 'from={tmp_path / 'none'}', but {missing}"
    )
    pinned = small.config(model__filters=f"from={folder}@{'0' * 16}")
    with pytest.raises(UserError, match="0000', but the filters there have the hash"):
        runs.assemble(pinned, tmp_path / "new")


def test_a_run_resumes_and_loads_without_its_source_but_not_with_another(
    source, tmp_path, monkeypatch
):
    folder, kernels = tmp_path / "source", source[1]
    shutil.copytree(source[0], folder)
    config = small.config(model__filters=f"from={folder}", mode="chans")
    small.stop_after(monkeypatch, 3)
    with pytest.raises(Preempted):
        loop.train(config, tmp_path / "run")
    monkeypatch.undo()
    shutil.rmtree(folder)
    write_source(folder, seed=1)
    with pytest.raises(UserError, match=r"another config \(model.filters: 'from=@"):
        loop.train(config, tmp_path / "run")
    shutil.rmtree(folder)
    loop.train(config, tmp_path / "run")
    found = spectrum.layers(randmix.load(tmp_path / "run").variables)
    assert len(found) == 2
    for name, kernel in found.items():
        np.testing.assert_array_equal(kernel, kernels[f"spatial/{name}/depthwise/kernel"])
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "run" / artifacts.CONFIG, tmp_path / "again")  # and no checkpoint
    with pytest.raises(UserError, match="no finished run there"):
        loop.train(config, tmp_path / "again")
