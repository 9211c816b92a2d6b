"""Checkpoints: damage is detected in every file, and no intact one is lost to a damaged one."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
import small
from etils import epath

from randmix.errors import UserError
from randmix.runtime import distributed
from randmix.training import loading
from randmix.training import loop as train
from randmix.workdir import manifest
from randmix.workdir.checkpoints import Checkpoints

ABOUT = {"config": "0123abcd"}


def states():
    """Two states that differ in every number; no model is compiled."""
    zero = {
        "params": {"spatial": {"kernel": np.zeros((3, 3, 4), np.float32)}},
        "step": np.zeros((), np.int32),
    }
    return zero, jax.tree.map(lambda x: x + 1, zero)


def abstract():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), states()[0]
    )


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def restore(workdir, about=ABOUT):
    with Checkpoints(workdir, about=about) as checkpoints:
        return checkpoints.restore_latest(abstract())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    (workdir / "checkpoints").mkdir()
    with Checkpoints(workdir, about=ABOUT) as checkpoints:
        for step, state in zip((10, 20), states(), strict=True):
            checkpoints.save(step, state)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def files(workdir):
    """The files of the newest checkpoint except the two that Orbax writes after the manifest."""
    folder = workdir / "checkpoints" / "20"
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        path for path in found if path.name not in {"_CHECKPOINT_METADATA", "commit_success.txt"}
    ]


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def test_the_manifest_holds_the_sums_that_sha256sum_gives(saved):
    import hashlib

    content = json.loads((saved / "checkpoints" / "20" / manifest.FILE).read_text())
    assert content["about"] == {"step": 20, **ABOUT}
    assert {f"{saved}/checkpoints/20/{name}" for name in content["files"]} == {
        str(path) for path in files(saved) if path.name != manifest.FILE
    }
    for name, measured in content["files"].items():
        data = (saved / "checkpoints" / "20" / name).read_bytes()
        assert measured == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_newest_is_restored(saved):
    assert equal(restore(saved), states()[1])
    assert not (saved / "set_aside").exists()


def test_as_many_are_kept_as_were_asked_for(tmp_path):
    for kept in (2, 3):
        folder = tmp_path / str(kept)
        folder.mkdir()
        with Checkpoints(folder, kept=kept) as checkpoints:
            for step in (1, 2, 3, 4):
                checkpoints.save(step, states()[0])
        assert checkpoints.all_steps() == [4, 3, 2][:kept]


def test_a_flipped_bit_in_any_file_is_found(workdir):
    rng = np.random.default_rng(0)
    assert len(files(workdir)) > 5
    with Checkpoints(workdir) as checkpoints:
        for path in files(workdir):
            whole = path.read_bytes()
            flip_a_bit(path, rng)
            assert path.name in checkpoints.damage(20), path
            path.write_bytes(whole)
        assert checkpoints.damage(20) is None


@pytest.mark.slow
def test_every_flipped_bit_of_the_manifest_is_found(workdir):
    path = workdir / "checkpoints" / "20" / manifest.FILE
    whole = path.read_bytes()
    for i in range(len(whole) * 8):
        content = bytearray(whole)
        content[i // 8] ^= 1 << i % 8
        path.write_bytes(content)
        assert manifest.damage(path.parent) is not None, (
            f"bit {i} of {whole[i // 8 - 20 : i // 8 + 20]}"
        )


def test_a_flipped_bit_where_orbax_keeps_times_does_no_harm(workdir):
    rng = np.random.default_rng(1)
    for path in (workdir / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
        flip_a_bit(path, rng)
    assert equal(restore(workdir), states()[1])


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "manifest"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(workdir, damage, caplog):
    path = workdir / "checkpoints" / "20" / "default" / "_METADATA"
    name = path.relative_to(workdir / "checkpoints" / "20")
    reason = {
        "flip": f"the SHA-256 of {name} isn't that of manifest.json",
        "truncate": f"{name} has 5 bytes, manifest.json says {path.stat().st_size}",
        "remove": f"{name} is missing",
        "add": "added isn't in manifest.json",
        "manifest": "manifest.json is missing",
    }[damage]
    if damage == "flip":
        flip_a_bit(path, np.random.default_rng(2))
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:5])
    elif damage == "remove":
        path.unlink()
    elif damage == "add":
        (workdir / "checkpoints" / "20" / "added").write_text("")
    else:
        (workdir / "checkpoints" / "20" / manifest.FILE).unlink()
    left = {p.name: p.read_bytes() for p in files(workdir)}
    with caplog.at_level(logging.WARNING):
        assert equal(restore(workdir), states()[0])
    assert caplog.messages == [
        f"{workdir}/checkpoints/20: damaged ({reason}); moved to {workdir}/set_aside/20, "
        "resuming from the checkpoint before it"
    ]
    moved = [p for p in (workdir / "set_aside" / "20").rglob("*") if p.is_file()]
    assert left.items() <= {p.name: p.read_bytes() for p in moved}.items()
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["10"]


def test_with_no_intact_one_left_the_run_starts_again_and_says_so(workdir, caplog):
    rng = np.random.default_rng(3)
    for path in (workdir / "checkpoints").glob("*/default/_METADATA"):
        flip_a_bit(path, rng)
    with caplog.at_level(logging.WARNING):
        assert restore(workdir) is None
    assert caplog.messages[-1] == (
        f"{workdir}/checkpoints/10: damaged (the SHA-256 of default/_METADATA isn't that of "
        f"manifest.json); moved to {workdir}/set_aside/10, starting from the first step"
    )
    assert sorted(p.name for p in (workdir / "set_aside").iterdir()) == ["10", "20"]


def test_a_step_set_aside_twice_keeps_both(workdir):
    for state in states():
        flip_a_bit(files(workdir)[0], np.random.default_rng(4))
        restore(workdir)
        with Checkpoints(workdir, about=ABOUT) as checkpoints:
            checkpoints.save(20, state)
    assert sorted(p.name for p in (workdir / "set_aside").iterdir()) == ["20", "20-1"]
    assert equal(restore(workdir), states()[1])


def test_nothing_saved_is_no_error(tmp_path):
    assert restore(tmp_path) is None
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match="no checkpoint there; train"),
    ):
        checkpoints.restore_variables()


def test_a_state_of_another_config_is_refused(workdir):
    with pytest.raises(UserError) as error:
        restore(workdir, {"config": "ffffffff"})
    assert str(error.value) == (
        f"{workdir}/checkpoints/20/manifest.json: config is '0123abcd', but 'ffffffff' in this "
        "run; put back this run's own config.json or checkpoints"
    )


def test_the_older_ones_go_only_when_the_newest_is_intact(workdir):
    with Checkpoints(workdir, about=ABOUT) as checkpoints:
        checkpoints.save(30, states()[0])
        checkpoints.wait()
        flip_a_bit(
            workdir / "checkpoints" / "30" / "default" / "_METADATA", np.random.default_rng(5)
        )
        checkpoints.save(40, states()[1])
        checkpoints.wait()
        assert checkpoints.all_steps() == [40, 30, 20, 10]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["30", "40"]
    assert equal(restore(workdir), states()[1])


@pytest.mark.slow
def test_a_reader_takes_the_intact_one_and_moves_nothing(tmp_path, caplog):
    run = tmp_path / "run"
    train.train(small.config(steps=2, checkpoint_every=1), run)
    (run / "checkpoints" / "2" / "default" / "_METADATA").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert loading.load(run).step == 1
    assert caplog.messages == [
        f"{run}/checkpoints/2: default/_METADATA has 1 bytes, manifest.json says "
        + caplog.messages[0].split()[-4].rstrip(";")
        + "; using step 1"
    ]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2"]


def test_a_full_disk_while_saving_keeps_what_was_there(workdir, monkeypatch):
    def full(folder, about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with (
        pytest.raises(OSError, match="No space left"),
        Checkpoints(workdir, about=ABOUT) as checkpoints,
    ):
        checkpoints.save(30, states()[0])
    monkeypatch.undo()
    assert equal(restore(workdir), states()[1])
    with Checkpoints(workdir, about=ABOUT) as checkpoints:
        checkpoints.save(30, states()[0])
    assert equal(restore(workdir), states()[0])


def test_another_process_than_the_first_neither_lists_nor_deletes(workdir, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    monkeypatch.setattr(distributed, "decided_by_primary", lambda decide: [20, 10])
    listing = type(epath.Path(workdir))
    monkeypatch.setattr(listing, "iterdir", lambda path: pytest.fail(f"listed {path}"))
    monkeypatch.setattr(manifest, "damage", lambda folder: pytest.fail(f"read {folder}"))
    with Checkpoints(workdir, about=ABOUT) as checkpoints:
        assert checkpoints.restore_latest(abstract()) is not None
        checkpoints.save(20, states()[0])  # it is there
        checkpoints.save(30, states()[0])
        checkpoints.save(40, states()[1])
    with Checkpoints(workdir, about=ABOUT) as checkpoints:
        checkpoints.save(50, states()[1])  # without having restored one
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {
        *("10", "20", "30", "40", "50"),
    }
    assert not (workdir / "checkpoints" / "40" / manifest.FILE).exists()
