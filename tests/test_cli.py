"""Behaviour shared by all command lines: help, one-line mistakes, exit statuses."""

import os
import subprocess
import sys
import types

import command
import pytest
from absl import flags
from ml_collections import config_flags

from randmix import commands
from randmix import config as configs
from randmix.commands import shared
from randmix.errors import UserError
from randmix.runtime import cli

CONFIG = """
from ml_collections import config_dict

def get_config():
    model = config_dict.ConfigDict({"name": "convmixer", "depth": 8})
    steps = config_dict.placeholder(int)
    return config_dict.ConfigDict({"seed": 0, "augment": True, "steps": steps, "model": model})
"""

PROGRAM = """
from absl import app, flags
from randmix import errors
from randmix.runtime import cli

flags.DEFINE_integer("width", 3, "how wide", lower_bound=1)
flags.DEFINE_bool("deep", True, "how deep")

def help_text():
    return cli.flags_text(["width", "deep"])

def main(argv):
    match argv[1:]:
        case ["mistake"]:
            raise errors.UserError("no such\\nthing")
        case ["bug"]:
            raise ValueError("a bug")
        case ["interrupt"]:
            raise KeyboardInterrupt
        case ["preempted"]:
            return 75
    print("width", flags.FLAGS.width, *argv[1:])

if __name__ == "__main__":
    cli.run(lambda: app.run(main, flags_parser=lambda argv: cli.parse(argv, help_text)))
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parses a command line in a folder with config.py, with separate flags."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    registry = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", registry)
    flags.DEFINE_integer("width", 3, "how wide", lower_bound=1, flag_values=registry)
    flags.DEFINE_bool("deep", True, "how deep", flag_values=registry)
    holder = config_flags.DEFINE_config_file("config", flag_values=registry)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        return cli.parse(sys.argv, lambda: "help"), holder.value

    return run


# ml_collections loads config files through a call that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")


def test_flags_overrides_and_arguments_are_parsed(parse):
    rest, config = parse(
        "--config=config.py",
        "--config.model.depth=2",
        "--config.steps",
        "5",
        "--noconfig.augment",
        "word",
    )
    assert rest == ["program", "word"]
    assert (config.model.depth, config.steps, config.augment, config.seed) == (2, 5, False, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wdith=3"], "unknown flag --wdith; did you mean 'width'?"),
        (["--width=0"], "--width=0: expected a positive integer"),
        (["--width=x"], "--width=x: expected a positive integer"),
        (["--deep", "--width", "x"], "--width=x: expected a positive integer"),
        (["--width"], "Missing value for flag --width"),
        (["--config=confg.py"], "there is no config file 'confg.py'; did you mean 'config.py'?"),
        (["--config", "confg.py", "--config.seed=1"], "there is no config file 'confg.py'"),
        (["--config=."], "there is no config file '.'"),
        (
            ["--config=configs/digit.py:tiny"],
            "'configs/digit.py'; did you mean 'configs/digits.py'",
        ),
        (
            ["--config=configs/digits.py:tinny"],
            "variant: got 'tinny', allowed laptop, tiny; did you",
        ),
        (
            ["--config=configs/digits.py", "--config.modle=x"],
            "config.modle: the config has no such",
        ),
        (["--config.seed=1"], "--config.seed changes a key of --config=FILE, which isn't given"),
        (["--config.seed=1", "--config=config.py"], "before a value for --config"),
        (
            ["--config=config.py", "--config.modle=x"],
            "--config.modle: the config has no such key; did you mean 'model'?",
        ),
        (["--config=config.py", "--config.model.dpeth=1"], "did you mean 'model.depth'?"),
        (["--config=config.py", "--config.model.dim=1"], "no such key; config.model has: "),
        (["--config=config.py", "--config.modle.depth=1"], "did you mean 'model.depth'?"),
        (["--config=config.py", "--config.depth", "1"], "did you mean 'model.depth'?"),
        (["--config=config.py", "--config.zzz=1"], "it has: augment, model, seed, steps"),
        (["--config=config.py", "--config.seed.x=1"], "the config has no such key"),
        (["--config=config.py", "--config.seed=abc"], "--config.seed=abc: expected an integer"),
        (["--config=config.py", "--config.steps=1.5"], "--config.steps=1.5: expected an integer"),
        (
            ["--config=config.py", "--config.augment=perhaps"],
            "--config.augment=perhaps: expected true or false",
        ),
        (["--config=config.py:tiny"], "get_config() takes 0 positional arguments but 1 was given"),
    ],
)
def test_a_mistake_on_the_command_line_says_what_to_do(parse, arguments, message):
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert message in str(error.value)


def test_a_shipped_config_is_found_in_any_folder_and_said(parse, capsys):
    _, config = parse("--config=configs/digits.py:tiny", "--config.seed=3")
    assert (config.model.width, config.steps, config.seed) == (8, 2, 3)
    assert capsys.readouterr().out == f"config: {configs.RECIPES}/digits.py:tiny\n"


def test_a_config_of_the_folder_precedes_the_shipped_one(parse, tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(CONFIG)
    _, config = parse("--config", "configs/digits.py")
    assert config.model.depth == 8
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.lock(); config.sede = 1", "unknown key 'sede'; did you mean 'seed'?"),
        ("config.sede", "unknown key 'sede'; did you mean 'seed'?"),
        ("config.seed = 'one'", "TypeError: "),
        ("raise ValueError('two words')", "ValueError: two words"),
        ("open('missing')", "FileNotFoundError: "),
        ("import missing", "ModuleNotFoundError: No module named 'missing'"),
        ("config = ", "SyntaxError: invalid syntax"),
        ("from randmix.data import catalog; catalog.get('digit')", "no data set is named 'digit'"),
    ],
)
def test_a_mistake_in_a_config_file_names_its_line(parse, tmp_path, line, message):
    body = (
        "from ml_collections import config_dict\n\ndef get_config():\n"
        f"    config = config_dict.ConfigDict({{'seed': 0}})\n    {line}\n    return config\n"
    )
    (tmp_path / "config.py").write_text(body)
    with pytest.raises(UserError) as error:
        parse("--config=config.py")
    assert str(error.value).startswith(f"config file config.py, line 5: {message}")


def test_a_bug_of_ours_under_a_config_file_keeps_its_traceback(parse, tmp_path):
    (tmp_path / "config.py").write_text(
        "from randmix.data import records\n\ndef get_config():\n"
        "    return records.resolve_data_dir(3)\n"
    )
    with pytest.raises(TypeError) as error:
        parse("--config=config.py")
    assert not isinstance(error.value, UserError)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "program.py"
    path.write_text(PROGRAM)
    return lambda *arguments, **streams: subprocess.run(
        [sys.executable, path, *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "stdout", "stderr"),
    [
        (["--width", "4", "word"], 0, "width 4 word\n", ""),
        (["mistake"], 2, "", "randmix: no such thing\n"),
        (
            ["--widht=4"],
            2,
            "",
            "randmix: unknown flag --widht; did you mean 'width'?; see --help\n",
        ),
        (["interrupt"], 130, "", "randmix: interrupted\n"),
        (["preempted"], 75, "", ""),
    ],
)
def test_exit_status_and_output(program, arguments, status, stdout, stderr):
    done = program(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (status, stdout, stderr)


def test_a_bug_keeps_its_traceback(program):
    done = program("bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ValueError: a bug\n")


def test_output_that_nobody_reads_is_no_bug(program):
    reader, writer = os.pipe()
    os.close(reader)
    done = program("--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("option", ["--help", "--helpfull"])
def test_help_lists_the_programs_own_flags(program, option):
    done = program(option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Flags (default):\n  --width (3)\n      how wide\n  --[no]deep (true)\n      how deep\n"
    )


@pytest.mark.slow
def test_without_a_command_all_are_listed():
    for arguments in ((), ("--help",)):
        done = command.run("randmix", *arguments)
        assert (done.status, done.err) == (0, "")
        assert [line.split()[0] for line in done.out.splitlines()[2:-2]] == [*commands.SUMMARIES]


@pytest.mark.slow
def test_a_mistyped_command_is_one_line():
    done = command.run("randmix", "evalute", "--workdir=x")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("randmix: command: got 'evalute', allowed train, evaluate, ")
    assert done.err.endswith("; did you mean 'evaluate'?\n")


@pytest.mark.parametrize("name", commands.SUMMARIES)
def test_help_of_a_command_is_enough_and_imports_no_jax(name):
    code = (
        f"import sys; from randmix import commands; sys.argv = ['randmix', '--help']\n"
        f"try: commands.run({name!r})\n"
        "except SystemExit as end: print(end.code, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Usage: python -m randmix {name} ")
    assert lines[2] == commands.SUMMARIES[name]
    assert f"    python -m randmix {name} " in done.stdout
    assert "\nExit status: 0 " in done.stdout
    assert ("  data.mixup (0.0)\n" in done.stdout) == ("  --config\n" in done.stdout)
    assert lines[-1] == "0 False"


@pytest.mark.slow
def test_a_warning_of_ours_is_one_line_and_of_others_as_python_prints_it():
    program = (
        "import warnings\n"
        "from randmix.masks.strictness import warn_once\n"
        "from randmix.runtime import cli\n"
        "cli.run(lambda: (warn_once('no role'), warnings.warn('theirs'), 0)[-1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "randmix: warning: no role",
        "<string>:4: UserWarning: theirs",
    ]


def test_the_workdir_of_a_sweep_is_no_bucket():
    shared.check_local(types.SimpleNamespace(workdir="runs/depth"))
    with pytest.raises(UserError) as error:
        shared.check_local(types.SimpleNamespace(workdir="gs://bucket/depth"))
    assert str(error.value) == (
        "--workdir: got gs://bucket/depth, allowed is a folder of a file system, as the processes "
        "of a sweep lock files there; randmix train takes a bucket"
    )
