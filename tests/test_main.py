"""The command line as a user types it: the default run, resuming, one-line mistakes."""

import json

import command
import pytest

DIGITS = "--config=configs/digits.py"
QUICK = (
    DIGITS,
    "--config.steps=4",
    "--config.model.width=8",
    "--config.model.depth=1",
    "--config.checkpoint_every=2",
    "--config.log_every=2",
)


def main(*arguments, **options):
    return command.run("randmix.main", *arguments, **options)


def test_a_run_ends_with_a_table_and_a_second_one_says_that_it_is_finished(tmp_path):
    done = main(*QUICK, f"--workdir={tmp_path}", "--config.mode=full")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"workdir: {tmp_path}"
    assert lines[1].startswith("host settings: ")
    assert lines[3].startswith("step 2/4  loss ")
    assert lines[3].endswith(" left")
    assert done.err == ""
    result = json.loads((tmp_path / "result.json").read_text())
    assert lines[-7:-5] == [
        "digits: batch_size=64 epochs=20.0 mode=full model.depth=1 model.width=8",
        "  optimizer.clip_norm=1.0 optimizer.weight_decay=0.005 steps=4",
    ]
    assert result["config"]["name"] == "digits"
    header, row = lines[-4].split("┃"), lines[-2].split("│")
    assert [cell.strip() for cell in header[1:-1]] == [
        "mode",
        "test accuracy",
        "trainable",
        "frozen",
        "seconds",
    ]
    assert [cell.strip() for cell in row[1:4]] == [
        "full",
        f"{result['metrics']['test_accuracy']:.4f}",
        f"{result['parameters']['trainable']:,}",
    ]

    again = main(*QUICK, f"--workdir={tmp_path}", "--config.mode=full")
    assert again.status == 0
    assert again.out.splitlines()[2] == f"{tmp_path}: finished before, at step 4; nothing to do"
    assert again.out.splitlines()[-2] == lines[-2]

    other = main(*QUICK, f"--workdir={tmp_path}", "--config.mode=space")
    assert (other.status, other.err) == (
        2,
        f"randmix: {tmp_path}: holds a run with another config (mode: 'full' -> 'space'); "
        "give another --workdir, or the old values\n",
    )


@pytest.mark.slow
def test_without_a_workdir_each_config_has_its_own_folder(tmp_path):
    config = command.REPOSITORY / "configs" / "digits.py"
    flags = (f"--config={config}", *QUICK[1:])
    first = main(*flags, cwd=tmp_path)
    assert first.status == 0, first.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert first.out.splitlines()[0] == f"workdir: runs/{folder.name}"
    name, _, digits = folder.name.rpartition("-")
    assert name == "digits"
    assert len(digits) == 8
    assert (
        main(*flags, "--config.log_every=1", cwd=tmp_path).out.splitlines()[0]
        == first.out.splitlines()[0]
    )


def test_help_is_enough():
    done = main("--help")
    assert done.status == 0
    for words in ("--config", "--workdir", "configs/digits.py", "data.mixup (0.0)", "Exit status"):
        assert words in done.out


def test_a_summary_shows_the_parameters_and_their_cost_and_ends(tmp_path):
    config = command.REPOSITORY / "configs" / "digits.py"
    done = main(f"--config={config}", "--summary", "--config.mode=space", cwd=tmp_path)
    assert done.status == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    (row,) = [line for line in lines if line[:1] == ["spatial/block_00/depthwise/kernel"]]
    assert row[1:4] == ["(5,", "5,", "64)"]
    # A 5 x 5 filter per channel (64) and pixel (8 x 8).
    assert row[4:] == ["float32", "spatial", "train", "1,600", "6.3", "%", f"{25 * 64 * 64:,}"]
    total = 64 * (64 + 4 * (25 * 64 + 64 * 64)) + 640
    assert ["total", "25,226", "100.0", "%", f"{total:,}"] in lines
    assert done.out.endswith("\ntrain: ~role('channel')\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing; give one, for example --config=configs/digits.py"),
        (["--config=configs/digit.py"], "configs/digit.py"),
        (
            [DIGITS, "--config.modle=full"],
            "--config.modle: the config has no such key; did you mean 'mode'?",
        ),
        (
            [DIGITS, "--config.model.widht=3"],
            "--config.model.widht: the config has no such key; did you mean 'model.width'?",
        ),
        (
            [DIGITS, "--config.mode=chan"],
            "config.mode: got 'chan', allowed full, chans, space, floor; did you mean 'chans'?",
        ),
        ([DIGITS, "--config.model.name=convmixr"], "did you mean 'convmixer'?"),
        (
            [DIGITS, "--config.optimizer.name=adamv"],
            "config.optimizer.name: got 'adamv', allowed adamw, sgd, an optimizer of optax "
            "or MODULE:FUNCTION; did you mean 'adamw'?",
        ),
        ([DIGITS, "--config.batch_size=many"], "--config.batch_size=many: expected an integer"),
        (
            [DIGITS, "--config.model.patch_size=3"],
            "patch_size: got 3, which doesn't divide the image's 8 x 8 pixels; "
            "allowed is a common divisor of both sides",
        ),
        ([DIGITS, "--workdri=x"], "unknown flag --workdri; did you mean 'workdir'?; see --help"),
        ([DIGITS, "full"], "got 'full', allowed are flags only; see --help"),
        (
            [
                "--config=configs/convmixer_mnist.py:fashion_mnist",
                "--config.data.data_dir=/nowhere",
            ],
            "fashion_mnist is not prepared in /nowhere; "
            "run `python -m randmix prepare fashion_mnist --data_dir=/nowhere`",
        ),
        (
            [DIGITS, "--profile=5:3"],
            "--profile: got '5:3', allowed START:STOP with 1 <= START <= STOP, for example "
            "--profile=10:14",
        ),
        ([DIGITS, "--profile=0:2"], "--profile: got '0:2', allowed START:STOP with 1 <= START"),
        (
            [DIGITS, "--profile=439:441"],
            "--profile: got 439:441, allowed are the run's steps, 1 to 440; set others",
        ),
        (
            [DIGITS, "--profile=1:2", "--summary"],
            "--profile: got it with --summary, which trains no steps; leave one out",
        ),
        (
            [DIGITS, "--profile=1:2", "--compile_for=v5e:4x4"],
            "--profile: got it with --compile_for, which trains no steps; leave one out",
        ),
        (
            [DIGITS, "--workdir=/dev/null/run"],
            "/dev/null/run: can't be written (Not a directory); "
            "give a --workdir that you may write to",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, tmp_path):
    where = [] if any("workdir" in a for a in arguments) else [f"--workdir={tmp_path / 'run'}"]
    done = main(*arguments, *where)
    assert done.status == 2
    assert done.err.startswith("randmix: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert "compiled" not in done.out
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_cannot_share(tmp_path):
    done = main(
        DIGITS,
        f"--workdir={tmp_path / 'run'}",
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
    )
    assert done.status == 2
    assert done.err == (
        "randmix: config.batch_size: got 64, which 3 devices can't share evenly; "
        "allowed is a multiple of 3\n"
    )


def test_a_mistake_in_a_config_file_is_one_line(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "from randmix.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.model.widht = 3\n"
        "    return config\n"
    )
    done = main(f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert done.status == 2
    assert done.err == (
        f"randmix: config file {config}, line 4: unknown key 'widht'; did you mean 'width'?\n"
    )


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_status_1(tmp_path):
    (tmp_path / "best").touch()  # nothing a person does, and nothing we foresee
    done = main(*QUICK, f"--workdir={tmp_path}")
    assert done.status == 1
    assert "Traceback (most recent call last)" in done.err
