"""Complete runs on an image folder: command lines, stopping, resuming, evaluation, attacks."""

import json
import shutil
import sys

import command
import jax
import numpy as np
import pictures
import pytest
import small
from logs import lines

import randmix
from randmix import masks
from randmix.data import catalog, photographs, prepare, records
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.runtime.preemption import Preempted
from randmix.training import evaluation as eval_loop
from randmix.training import loop as train
from randmix.training import runs, skipped

NAME = "imagefolder/flowers"
OVERRIDES = {
    "data__name": NAME,
    "data__image_size": 16,
    "data__crop_scale": 0.25,
    "data__flip": True,
    "data__crop_padding": 0,
    "data__workers": 2,
    "model__width": 8,
    "model__depth": 1,
    "model__patch_size": 4,
    "batch_size": 8,
    "steps": 4,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Noise of two hues and pieces of two photographs; a third are PNGs, one is grey, one CMYK."""
    folder = tmp_path_factory.mktemp("flowers")
    source = pictures.folder(folder / "source")
    for number, label in enumerate(("china", "flower")):
        (source / label).mkdir()
        whole = pictures.photograph(number, 640, 427)
        for k in range(10):
            part = whole[40 * k : 40 * k + 60, 60 * k : 60 * k + 80]
            mode = {0: "L", 1: "CMYK"}.get(k, "RGB")
            (source / label / f"{k}.jpg").write_bytes(pictures.encode(part, mode=mode, quality=95))
    prepare.prepare_folder(source, NAME, folder / "data", progress=False)
    return folder / "data"


def run(workdir, data_dir, **overrides):
    return train.train(config(data_dir, **overrides), workdir, devices=jax.devices()[:1])


def config(data_dir, **overrides):
    return small.config(data__data_dir=str(data_dir), **(OVERRIDES | overrides))


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir, data_dir)


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_for_bit(whole, data_dir, tmp_path, monkeypatch, capsys):
    reference, result = whole
    with monkeypatch.context() as patch:
        small.stop_after(patch, 3)
        with pytest.raises(Preempted, match="stopped and saved at step 3 of 4"):
            run(tmp_path, data_dir)
    resumed = run(tmp_path, data_dir, data__workers=1)  # which may change
    assert "resuming from step 3" in capsys.readouterr().out
    assert not masks.diff(randmix.load(reference).variables, randmix.load(tmp_path).variables).moved
    assert lines(tmp_path) == lines(reference)
    assert resumed["metrics"] == result["metrics"]


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_decoder(whole, data_dir, monkeypatch):
    workdir, _ = whole
    written = json.loads((workdir / "config.json").read_text())["data"]
    assert (written["decoder"], written["in_memory"]) == ("simplejpeg", "off")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(
        UserError, match=r"\(data.decoder: 'simplejpeg' -> 'pillow'\); give another"
    ):
        run(workdir, data_dir)
    with pytest.raises(UserError, match="got 'simplejpeg', but simplejpeg can't be imported; run"):
        run(workdir, data_dir, data__decoder="simplejpeg")
    loaded = randmix.load(workdir)  # evaluation needs no particular decoder
    assert eval_loop.evaluate_run(loaded, eval_loop.open_split(loaded, "test"), batch_size=4)


@pytest.mark.slow
def test_damaged_photographs_are_counted_and_named(data_dir, tmp_path, monkeypatch):
    """In the log, in result.json and in skipped.json; in the same steps after a resume."""
    options = {"data__corrupt": "skip", "steps": 10, "log_every": 1}
    parts = runs.assemble(config(data_dir, **options))
    feed = parts.data.open()[0].for_training(
        seed=parts.seed,
        batch_size=8,
        total_steps=10,
        examples=parts.data.train_examples,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )
    # Of the batches of steps 1, 3 and 4; each record is in one batch of the first epoch at most.
    splits = {"train": {int(feed.rows(step)[0]) for step in (0, 2, 3)}, "test": {1}}
    with monkeypatch.context() as patch:
        damage(patch, splits)
        undisturbed = run(tmp_path / "whole", data_dir, **options)
        with patch.context() as stopping:
            small.stop_after(stopping, 4)
            with pytest.raises(Preempted):
                run(tmp_path / "stopped", data_dir, **options)
        # As if it had been killed after a log line, and its newest checkpoint lost.
        shutil.copytree(tmp_path / "stopped", tmp_path / "killed")
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / "4")
        resumed = run(tmp_path / "stopped", data_dir, **options)
        run(tmp_path / "killed", data_dir, **options)
    assert undisturbed["skipped"] == resumed["skipped"] == {"train": 3, "test": 1}
    for name in ("stopped", "killed"):
        assert lines(tmp_path / name) == lines(tmp_path / "whole")
    counts = [row["train_skipped"] for row in lines(tmp_path / "whole") if "train_loss" in row]
    assert counts == [1, 1, 2, *[3] * 7]
    assert {row["test_skipped"] for row in lines(tmp_path / "whole") if "test_loss" in row} == {1}
    data_set = catalog.get(NAME, data_dir, image_size=16)
    for name in ("whole", "stopped", "killed"):
        listed = json.loads((tmp_path / name / "skipped.json").read_text())
        for split, rows in splits.items():
            source = catalog.open_source(data_set, split, data_dir)
            files = {(row, source[row]["file_name"].decode()) for row in rows}
            assert {(entry["record"], entry["file"]) for entry in listed[split]} == files
    with monkeypatch.context() as patch:
        damage(patch, splits)
        split = eval_loop.open_split(randmix.load(tmp_path / "whole"), "test")
        assert len(split.arrays(3)["label"]) == 2
    assert split.skipped == {1}
    assert "skipped" not in run(tmp_path / "intact", data_dir)
    damage(monkeypatch, splits)
    with pytest.raises(UserError, match=r"is not a complete image .*; set config.data.corrupt to"):
        run(tmp_path / "fatal", data_dir, steps=10)


def damage(monkeypatch, rows):
    """Cuts the images of some rows' records in half: {split: rows}."""
    open_source = catalog.open_source

    class Damaged:
        def __init__(self, source, split):
            self.source, self.split = source, split

        def __len__(self):
            return len(self.source)

        def __getitem__(self, row):
            record = self.source[row]
            cut = row in rows[self.split]
            return record | {"image": record["image"][:200]} if cut else record

    monkeypatch.setattr(
        catalog,
        "open_source",
        lambda data_set, split, data_dir: Damaged(open_source(data_set, split, data_dir), split),
    )


@pytest.mark.slow
def test_a_damaged_list_of_photographs_stops_no_run(data_dir, tmp_path):
    (tmp_path / skipped.FILE).write_text('{"train": [')
    assert run(tmp_path, data_dir, data__corrupt="skip")["skipped"] == {"train": 0, "test": 0}


@pytest.mark.slow
def test_the_result_is_of_every_test_example(whole, data_dir):
    """Against examples decoded, cropped and classified here, without the stream."""
    workdir, result = whole
    loaded = randmix.load(workdir)
    data_set = catalog.get(NAME, data_dir, image_size=16)
    source = catalog.open_source(data_set, "test", data_dir)
    assert len(source) == data_set.test_examples == 4
    records = [source[k] for k in range(4)]
    images = np.stack(
        [
            photographs.centre_crop(x["image"], image_size=16, crop=0.96, decoder="pillow")
            for x in records
        ]
    )
    logits = jax.jit(loaded.model.apply)(loaded.variables, images.astype(np.float32) / 255)
    labels = np.array([x["label"] for x in records])
    assert (np.asarray(logits).argmax(-1) == labels).mean() == result["metrics"]["test_accuracy"]
    again = eval_loop.evaluate_run(loaded, eval_loop.open_split(loaded, "test"), batch_size=2)
    assert again["loss"] == pytest.approx(result["metrics"]["test_loss"], rel=1e-5)


@pytest.mark.slow
def test_the_run_is_loaded_without_its_data(whole, tmp_path, monkeypatch):
    workdir, _ = whole
    monkeypatch.setattr(records, "resolve_data_dir", lambda data_dir: tmp_path)
    assert randmix.load(workdir).step == 4


@pytest.mark.slow
def test_evaluation_by_the_command_line_clean_and_under_attack(whole, tmp_path):
    workdir, result = whole
    flags = (f"--workdir={workdir}", f"--out={tmp_path}")
    done = command.run("randmix evaluate", *flags)
    assert (done.status, done.err) == (0, "")
    assert f"{result['metrics']['test_accuracy']:.4f}" in done.out
    done = command.run("randmix evaluate", *flags, "--attacks=fgsm", "--epsilons=0,8")
    assert done.status == 2
    assert (
        f"{NAME} may not fit in memory; use only the first examples, for example --examples=1000"
        in done.err
    )
    done = command.run(
        "randmix evaluate", *flags, "--attacks=fgsm", "--epsilons=0,8", "--examples=3"
    )
    assert (done.status, done.err) == (0, "")
    assert "the first 3 of 4" in done.out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"data__name": "imagefolder/pets"}, "imagefolder/pets is not prepared in "),
        (
            {"data__image_size": 18},
            "patch_size: got 4, which doesn't divide the image's 18 x 18 pixels",
        ),
        ({"data__image_size": 0}, "config.data.image_size: got 0, allowed 1 to 65535"),
        ({"data__eval_crop": 0.0}, "config.data.eval_crop: got 0.0, allowed more than 0, up to 1"),
        ({"data__workers": -1}, "config.data.workers: got -1, allowed 0 to 1024"),
        ({"data__decoder": "simplejpg"}, "did you mean 'simplejpeg'?"),
        ({"data__corrupt": "ignore"}, "config.data.corrupt: got 'ignore', allowed fatal, skip"),
        (
            {"data__interpolation": "bicubic"},
            "config.data.interpolation: got 'bicubic', allowed fast, antialias, antialias_random",
        ),
    ],
)
def test_an_invalid_value_is_refused(data_dir, override, message):
    with pytest.raises(UserError) as error:
        runs.assemble(config(data_dir, **override))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
