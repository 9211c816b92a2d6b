"""Evaluation from the command line, curves over a split, and data sets that a run doesn't fit.

Over 400 lines: all of it needs the same trained run, which takes seconds to make.
"""

import csv
import dataclasses
import json
import shutil
import string

import command
import jax
import numpy as np
import pytest
import small

from randmix import attacks, data
from randmix.analysis import robustness, spectrum
from randmix.analysis.robustness import sanity
from randmix.data import arrays
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import evaluation as eval_loop
from randmix.training import loading, runs
from randmix.training import loop as train

pytestmark = pytest.mark.slow

QUICK = (
    "--attacks=fgsm,pgd2,square,strong",
    "--examples=50",
    "--strong_examples=20",
    "--strong_steps=3",
    "--strong_restarts=2",
    "--square_queries=5",
)
SETTINGS = robustness.Settings(
    ("noise", "fgsm", "pgd2", "pgd", "targeted", "square", "strong"),
    (0.0, 24.0, 64.0),
    strong_examples=40,
    targeted={"steps": 4, "targets": 3},
    square={"queries": 20},
    strong={"steps": 8, "restarts": 2},
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A defended run that has learned something."""
    folder = tmp_path_factory.mktemp("run")
    train.train(
        small.config(
            steps=90,
            eval_every=45,
            log_every=90,
            checkpoint_every=30,
            keep_checkpoints=3,
            optimizer__learning_rate=0.02,
            defense__epsilon=4.0,
            defense__pgd_examples=70,
        ),
        folder,
        devices=jax.devices()[:1],
    )
    return folder


def evaluate(*arguments, **options):
    return command.run("randmix evaluate", *arguments, **options)


def metrics_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_defended_run_logs_a_multi_step_attack_at_each_evaluation(workdir):
    logged = [line["test_pgd_accuracy"] for line in metrics_lines(workdir) if "test_loss" in line]
    result = json.loads((workdir / "result.json").read_text())["metrics"]
    assert len(logged) == 2
    assert logged[-1] == result["test_pgd_accuracy"] < result["test_accuracy"]
    run = loading.load(workdir)
    data = eval_loop.open_split(run, "test").arrays()
    images, labels = data["image"][:70] / np.float32(255), data["label"][:70]
    classifier = jax.jit(lambda x: run.model.apply(run.variables, x, train=False))
    attacked = jax.jit(
        lambda x: attacks.pgd(classifier, x, labels, 4 / 255, steps=10, step_size=0.25)
    )(images)
    expected = (classifier(attacked).argmax(-1) == labels).mean()
    assert result["test_pgd_accuracy"] == pytest.approx(float(expected), abs=1e-6)


def test_the_clean_evaluation_gives_the_run_s_result_and_writes_nothing(workdir):
    before = sorted(workdir.rglob("*"))
    done = evaluate(f"--workdir={workdir}")
    assert done.status == 0, done.err
    result = json.loads((workdir / "result.json").read_text())["metrics"]
    header, row = (
        [cell.strip() for cell in line.split(bar)[1:-1]]
        for line, bar in zip(done.out.splitlines()[1::2], "┃│", strict=False)
    )
    got = dict(zip(header, row, strict=True))
    assert (got["step"], got["data"], got["examples"]) == ("90", "digits, test", "all 360")
    assert got["accuracy"] == f"{result['test_accuracy']:.4f}"
    assert got["loss"] == f"{result['test_loss']:.4f}"
    assert sorted(workdir.rglob("*")) == before


def test_a_loaded_run_shows_itself_in_a_few_lines(workdir, tmp_path):
    run = loading.load(workdir)
    result = json.loads((workdir / "result.json").read_text())
    trained, frozen = (result["parameters"][name] for name in ("trainable", "frozen"))
    lines = [
        f"Run({workdir})",
        "  model          convmixer, width 16, depth 2",
        "  data           digits",
        f"  trained        chans: {trained:,} of {trained + frozen:,} parameters",
        "  step           90 of 90",
        f"  test accuracy  {result['metrics']['test_accuracy']:.4f}",
    ]
    assert repr(run).splitlines() == lines
    page = run._repr_html_()
    assert page.count("<tr>") == 5
    for line in lines[1:]:
        assert f">{line[17:]}</td>" in page
    named = dataclasses.replace(run, workdir="<b>&")
    assert "<caption>Run(&lt;b&gt;&amp;)</caption>" in named._repr_html_()

    # One run stopped after its first evaluation, and one without any.
    stopped = shutil.copytree(workdir, tmp_path / "stopped")
    (stopped / "result.json").unlink()
    first = next(line for line in metrics_lines(workdir) if "test_loss" in line)
    (stopped / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    shown = f"  test accuracy  {first['test_accuracy']:.4f}, at step 45"
    assert repr(loading.load(stopped)).splitlines()[-1] == shown
    (stopped / "metrics.jsonl").unlink()
    assert repr(loading.load(stopped)).splitlines()[-1].startswith("  step ")


def test_an_earlier_checkpoint_is_evaluated_by_its_step(workdir):
    assert loading.kept_steps(workdir) == [30, 60, 90]
    run = loading.load(workdir, step=30)
    assert run.step == 30
    last = loading.load(workdir)
    assert not np.array_equal(*(r.variables["head"]["classifier"]["bias"] for r in (run, last)))
    with pytest.raises(UserError) as error:
        loading.load(workdir, step=45)
    assert str(error.value) == (
        f"{workdir}/checkpoints: got step 45, allowed are those of its checkpoints: 30, 60, 90"
    )


def test_an_earlier_checkpoint_is_attacked_in_a_folder_of_its_own(workdir):
    done = evaluate(
        f"--workdir={workdir}", "--step=60", "--attacks=fgsm", "--epsilons=0", "--examples=32"
    )
    assert done.status == 0, done.err
    assert json.loads((workdir / "step_60" / "attacks.json").read_text())["step"] == 60
    shutil.rmtree(workdir / "step_60")


def test_a_damaged_checkpoint_is_not_loaded_by_its_step(workdir, tmp_path):
    workdir = shutil.copytree(workdir, tmp_path / "run")
    manifest = workdir / "checkpoints" / "60" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0", "1", 1))
    assert loading.kept_steps(workdir) == [30, 90]
    with pytest.raises(UserError, match=r"/checkpoints/60: .*; choose another step"):
        loading.load(workdir, step=60)


def test_attacks_from_the_command_line(workdir, tmp_path):
    done = evaluate(
        f"--workdir={workdir}", f"--out={tmp_path / 'new'}", "--epsilons=64,0,8", *QUICK
    )
    assert done.status == 0, done.err
    assert "examples: the first 50 of 360" in done.out
    assert "strong: 100 %, " in done.out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        f"attacks.{suffix}" for suffix in ("csv", "json", "npz", "png", "svg")
    }
    with (tmp_path / "new" / "attacks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["attack"], row["epsilon"], row["examples"]) for row in rows] == [
        (attack, epsilon, examples)
        for attack, examples in (
            ("noise", "20"),
            ("fgsm", "50"),
            ("pgd2", "50"),
            ("square", "20"),
            ("strong", "20"),
        )
        for epsilon in ("0", "8", "64")
    ]
    accuracy = {(row["attack"], row["epsilon"]): float(row["accuracy"]) for row in rows}
    written = json.loads((tmp_path / "new" / "attacks.json").read_text())
    bits = robustness.load(tmp_path / "new" / "attacks.npz")
    assert bits["epsilons"].tolist() == [0, 8, 64]
    assert bits["clean"].mean() == pytest.approx(written["clean_accuracy"], abs=1e-7)
    for name, examples in written["attacked_examples"].items():
        assert bits[name].shape == (3, examples)
        assert bits[name].mean(1).tolist() == [accuracy[name, e] for e in ("0", "8", "64")]
        np.testing.assert_array_equal(bits[name][0], bits["clean"][:examples])
    assert accuracy["strong", "64"] < accuracy["strong", "8"] < accuracy["strong", "0"]
    assert written["settings"]["strong"] == {"steps": 3, "restarts": 2}
    verdicts = [
        line for line in done.out.splitlines() if line[:6] in ("pass  ", "FAIL  ", "open  ")
    ]
    assert [line.split(":")[0][6:] for line in verdicts] == [
        check["claim"] for check in written["checks"]
    ]
    assert verdicts[0].startswith("pass")


def test_the_filters_of_a_finished_run_can_be_smoothed_first(workdir):
    done = evaluate(
        f"--workdir={workdir}", "--attacks=fgsm", "--epsilons=0", "--examples=48", "--smoothing=2"
    )
    assert done.status == 0, done.err
    about = json.loads((workdir / "smoothing_2" / "attacks.json").read_text())
    assert about["smoothing_index"] == 2.0
    run = loading.load(workdir)
    variables = spectrum.smooth_filters(run.variables, 2.0)
    data = eval_loop.open_split(run, "test", name=None, data_dir=None).arrays()
    images = data["image"][:48].astype(np.float32) / 255
    logits = np.asarray(jax.jit(run.model.apply)(variables, images))
    assert about["clean_accuracy"] == pytest.approx((logits.argmax(1) == data["label"][:48]).mean())
    shutil.rmtree(workdir / "smoothing_2")


def test_curves_depend_neither_on_batches_nor_on_devices(workdir):
    run = loading.load(workdir)
    data = eval_loop.open_split(run, "test").arrays()
    data = {name: array[:45] for name, array in data.items()}
    one, two = (
        robustness.measure(
            run.model,
            run.variables,
            data,
            dataclasses.replace(SETTINGS, batch_size=batch_size),
            devices=jax.devices()[:devices],
        )
        for devices, batch_size in ((1, 45), (2, 32))
    )
    assert one.examples == 45
    assert {name: rows.shape[1] for name, rows in one.correct.items()} == {
        name: 45 if name in ("fgsm", "pgd2", "pgd") else 40 for name in SETTINGS.attacks
    }
    for name in SETTINGS.attacks:
        # Another order of summation may change an example on the boundary.
        assert (one.correct[name] != two.correct[name]).sum() <= 1, name
    mesh = sharding.make_mesh(jax.devices()[:1])
    expected = eval_loop.evaluate_split(
        eval_loop.jit_eval_step(
            model=run.model, task=runs.assemble(run.config).step.task, mesh=mesh, batch_size=45
        ),
        run.variables,
        arrays.eval_arrays(data, batch_size=45, mesh=mesh),
    )
    assert one.clean == expected["accuracy"] == one.accuracy("fgsm")[0]
    assert one.accuracy("strong")[0] == one.clean_correct[:40].mean()
    assert [check.passed for check in sanity.checks(one)] == [True] * 8
    for name in SETTINGS.attacks:
        assert not (one.correct["strong"] & ~one.correct[name][:, :40]).any(), name
    assert one.correct["strong"].sum() < one.correct["noise"].sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir="], "--workdir is missing; give one, for example --workdir=runs/a"),
        (
            ["--workdir=/nowhere"],
            "/nowhere: no run there (config.json is missing); give the --workdir of a run",
        ),
        (["clean"], "got 'clean', allowed are flags only; see --help"),
        (
            ["--attacks=fgms"],
            "--attacks: got 'fgms', allowed noise, fgsm, pgd2, pgd, targeted, square, strong; did "
            "you mean 'fgsm'?",
        ),
        (
            ["--attacks="],
            "--attacks is empty; allowed are noise, fgsm, pgd2, pgd, targeted, square, strong",
        ),
        (
            ["--attacks=fgsm", "--epsilons="],
            "--epsilons is empty; give some, for example --epsilons=0,2,8",
        ),
        (
            ["--attacks=fgsm", "--epsilons=8,-1"],
            "--epsilons: got '-1', allowed are numbers, 0 to 255 (in 1/255)",
        ),
        (
            ["--attacks=fgsm", "--epsilons=256"],
            "--epsilons: got '256', allowed are numbers, 0 to 255 (in 1/255)",
        ),
        (
            ["--attacks=fgsm", "--epsilons=nan"],
            "--epsilons: got 'nan', allowed are numbers, 0 to 255 (in 1/255)",
        ),
        (
            ["--attacks=fgsm", "--epsilons=a"],
            "--epsilons: got 'a', allowed are numbers, 0 to 255 (in 1/255)",
        ),
        (
            ["--attacks=strong", "--strong_steps=0"],
            "--strong_steps: got 0, allowed 1 to 2147483647",
        ),
        (
            ["--attacks=strong", "--strong_restarts=0"],
            "--strong_restarts: got 0, allowed 1 to 2147483647",
        ),
        (
            ["--attacks=pgd", "--pgd_step_size=0"],
            "--pgd_step_size: got 0.0, allowed more than 0, up to 3.4e+38",
        ),
        (
            ["--attacks=pgd", "--pgd_restarts=2", "--nopgd_random_start"],
            "--pgd_restarts: got 2 without a random start, which would all end the same",
        ),
        (
            ["--attacks=pgd", "--pgd_step_size=inf"],
            "--pgd_step_size: got inf, allowed more than 0, up to 3.4e+38",
        ),
        (
            ["--attacks=strong", "--strong_steps=2147483648"],
            "--strong_steps: got 2147483648, allowed 1 to 2147483647",
        ),
        (
            ["--attacks=fgsm", "--norm=l2", "--epsilons=1e39"],
            "--epsilons: got '1e39', allowed are numbers, 0 to 3.4e+38 (in 1/255)",
        ),
        (
            ["--attacks=square", "--square_queries=0"],
            "--square_queries: got 0, allowed 1 to 2147483647",
        ),
        (
            ["--attacks=square", "--norm=l2"],
            "square: got the norm 'l2', allowed is 'linf'; leave square out",
        ),
        (["--best", "--step=30"], "--step: got one with --best, which names another checkpoint"),
        (["--step=31"], "checkpoints: got step 31, allowed are those of its checkpoints: 30, 60"),
        (["--smoothing=nan"], "--smoothing: got nan, allowed 0 to 1000"),
        (
            ["--attacks=fgsm", "--norm=l1"],
            "--norm: got 'l1', allowed linf, l2",
        ),
        (
            ["--examples=0"],
            "--examples=0: expected a positive integer",
        ),
        (["--split=dev"], "split: got 'dev', allowed train, test"),
        (
            ["--data=cifar10"],
            "data set cifar10: its images are 32 x 32 x 3, the model's 8 x 8 x 1; "
            "give --data one that it fits\n",
        ),
        (
            ["--data=mnist"],
            "data set mnist: its images are 28 x 28 x 1, the model's 8 x 8 x 1; "
            "give --data one that it fits, or --force\n",
        ),
        (["--data=mnist", "--force"], "mnist is not prepared in "),
        (["--data=digit"], "no data set is named 'digit'; there are: digits, "),
        (
            ["--attacks=fgsm", "--out=/dev/null/x"],
            "/dev/null/x: can't be written (Not a directory)",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(workdir, arguments, message):
    given = [] if any("--workdir" in a for a in arguments) else [f"--workdir={workdir}"]
    done = evaluate(*given, *arguments)
    assert done.status == 2, done.err
    assert done.err.startswith("randmix: ")
    assert done.err.count("\n") == 1
    assert message in done.err


def test_a_workdir_without_a_checkpoint_and_one_without_a_data_set(workdir, tmp_path):
    shutil.copy(workdir / "config.json", tmp_path)
    done = evaluate(f"--workdir={tmp_path}")
    assert (done.status, done.err) == (
        2,
        f"randmix: {tmp_path}/checkpoints: no checkpoint there; train this workdir\n",
    )
    run = loading.load(workdir)
    with run.config.ignore_type():
        run.config.data.name = None
    with pytest.raises(UserError, match="--data is missing: this workdir names no data set"):
        eval_loop.open_split(run, "test")
    split = eval_loop.open_split(run, "test", name="digits")
    assert (split.data_set.name, split.arrays()["image"].shape) == ("digits", (360, 8, 8, 1))


DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture
def digits_like(tmp_path):
    """Makes a data set that differs from the digits by its images' shape or its classes."""

    def make(classes=DIGITS, image_shape=(8, 8, 1)):
        images = np.random.default_rng(0).integers(0, 256, (360, *image_shape), np.uint8)
        pair = images, np.arange(360) % len(classes)
        name = data.from_arrays(
            f"of_{len(classes)}", train=pair, test=pair, classes=[*classes], data_dir=tmp_path
        )
        return {"name": name, "data_dir": str(tmp_path)}

    return make


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("properties", "difference", "forcible"),
    [
        (
            {"classes": "abcdefghij"},
            "its classes are a, b, c, ..., the model's are 0, 1, 2, ...",
            True,
        ),
        (
            {"classes": [*DIGITS[:9], "nine"]},
            "its classes are ..., nine, the model's are ..., 9",
            True,
        ),
        (
            {"image_shape": (16, 4, 1), "classes": "abcdefghij"},
            "its images are 16 x 4 x 1, the model's 8 x 8 x 1; "
            "its classes are a, b, c, ..., the model's are 0, 1, 2, ...",
            True,
        ),
        ({"image_shape": (8, 8, 3)}, "its images are 8 x 8 x 3, the model's 8 x 8 x 1", False),
        ({"classes": string.ascii_lowercase}, "it has 26 classes, the model 10", False),
    ],
)
def test_another_data_set_must_have_the_runs_images_and_classes(
    recorded, properties, difference, forcible, workdir, digits_like, tmp_path
):
    if not recorded:  # an older run: the catalog has what its data set is
        workdir = shutil.copytree(workdir, tmp_path / "run")
        (workdir / "data.json").unlink()
    run, other = loading.load(workdir), digits_like(**properties)
    with pytest.raises(UserError) as error:
        eval_loop.open_split(run, "test", **other)
    message = f"data set {other['name']}: {difference}; give --data one that it fits"
    assert str(error.value) == message + (", or --force" if forcible else "")
    if forcible:
        split = eval_loop.open_split(run, "test", **other, force=True)
        assert split.examples() == 360
    else:
        with pytest.raises(UserError) as error:
            eval_loop.open_split(run, "test", **other, force=True)
        assert str(error.value) == message


def test_an_image_size_that_the_model_cannot_process_is_refused_even_by_force(workdir, digits_like):
    run, other = loading.load(workdir), digits_like(image_shape=(9, 9, 1))
    with pytest.raises(UserError, match=r"^patch_size: got 2, which doesn't divide the image's 9"):
        eval_loop.open_split(run, "test", **other, force=True)


def test_a_data_set_whose_classes_have_changed_since_the_training(workdir, tmp_path):
    workdir = shutil.copytree(workdir, tmp_path / "run")
    data = json.loads((workdir / "data.json").read_text())
    (workdir / "data.json").write_text(json.dumps(data | {"classes": [*"abcdefghij"]}))
    run = loading.load(workdir)
    with pytest.raises(UserError) as error:
        eval_loop.open_split(run, "test")
    assert str(error.value) == (
        "data set digits: its classes are 0, 1, 2, ..., the model's are a, b, c, ...; "
        "give --data one that it fits, or --force"
    )


def test_without_a_record_and_an_entry_the_weights_decide(workdir, digits_like, tmp_path):
    workdir = shutil.copytree(workdir, tmp_path / "run")
    (workdir / "data.json").unlink()
    run = loading.load(workdir)
    run.config.data.name = "imagefolder/gone"
    assert eval_loop.open_split(run, "test", **digits_like("abcdefghij")).examples() == 360
    with pytest.raises(UserError) as error:
        eval_loop.open_split(run, "test", **digits_like(string.ascii_lowercase))
    assert str(error.value) == (
        "data set arrays/of_26: got 8 x 8 x 1 images in 26 classes, but the model is for 10 "
        "classes; give --data one that it fits"
    )


def test_a_run_without_an_accuracy_is_evaluated_clean_only(tmp_path, digits_like):
    train.train(
        small.config(
            task="unshuffling", steps=2, model__patch_size=1, data__crop_padding=0, model__depth=1
        ),
        tmp_path,
        devices=jax.devices()[:1],
    )
    done = evaluate(f"--workdir={tmp_path}")
    assert done.status == 0, done.err
    assert (
        f"{json.loads((tmp_path / 'result.json').read_text())['metrics']['test_psnr']:.2f} dB"
        in done.out
    )
    # Class names don't matter.
    assert eval_loop.open_split(loading.load(tmp_path), "test", **digits_like("abcdefghij"))
    done = evaluate(f"--workdir={tmp_path}", "--attacks=fgsm")
    assert (done.status, done.err) == (
        2,
        f"randmix: {tmp_path}: a run with the task 'unshuffling', "
        "allowed under attack are runs with the task 'classification'; leave --attacks out\n",
    )


def test_help_is_enough():
    done = evaluate("--help")
    assert done.status == 0
    for words in (
        "--workdir",
        "--attacks",
        "--epsilons",
        "--examples",
        "--strong_restarts",
        "attacks.csv",
        "PGD-2",
    ):
        assert words in done.out
