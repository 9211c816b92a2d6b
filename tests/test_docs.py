"""The commands, code and links of the pages in docs/ do what the pages say.

Commands (```bash) and code (```python) run in order, each page in its own checkout. The next
```text fence is their output, with ``...`` for what is left out. After commands, which run at a
smaller size here, numbers may differ.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import command
import jax
import jax.numpy as jnp
import numpy as np
import pictures
import pytest
import safetensors.numpy
import stand_ins
import tfds_sets
from launchers import GCLOUD, SRUN, commit_launchers
from small_archives import SMALL

import randmix
from randmix import models
from randmix.data import imagenet

FENCE = re.compile(r"""^```(\w*)(?: title="([\w.]+)")?\n(.*?)^```$""", re.DOTALL | re.MULTILINE)
DOCS = command.REPOSITORY / "docs"
PAGES = ["../README.md", *sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))]

# What can't be run in a test, and why.
NOT_RUN = {
    "pytest": "is what runs this",
    "pip": "installs; that the extra exists is checked",
    "docker": "needs a registry",
    "kubectl": "needs a cluster",
}
# Appended to make a command quick.
QUICK = {
    "randmix.main": (
        "--config.steps=2",
        "--config.batch_size=4",
        "--config.model.width=8",
        "--config.model.depth=1",
        "--config.eval_every=2",
        "--config.checkpoint_every=2",
        "--config.data.subset=1.0",
        "--config.tensorboard=False",  # imports PyTorch where installed, which takes seconds
        "--config.data.image_size=28",
    ),
    "randmix evaluate": (
        "--examples=8",
        "--strong_steps=2",
        "--strong_restarts=1",
        "--targeted_steps=1",
        "--targeted_classes=1",
        "--square_queries=2",
    ),
    "randmix sweep": (
        "--config.steps=2",
        "--set=batch_size=4",
        "--set=model.width=8",
        "--set=tensorboard=False",
    ),
    "randmix reproduce": (
        "--experiments=E9,E11",
        "--override=steps=2",
        "--override=batch_size=4",
        "--seeds=1",
    ),
    "benchmarks": ("--only_check_args",),  # each takes minutes
}
# With these, nothing is trained and no data set is read.
LOOKS = {"--summary", "--dry_run", "--help"}
# The same for compiling for a slice of 16 chips, which reads no data either.
COMPILE_FOR = (
    "--config.batch_size=16",
    "--config.model.width=8",
    "--config.model.depth=1",
    "--config.data.image_size=28",
    "--config.data.randaugment=",  # takes longest to compile
)
# Compilation dominates, so skip most of LLVM's optimisations and compile each program once.
COMPILER = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
# Stand in for Python and sbatch where launch/ starts them; record what they are asked to run.
PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 9999; exit; fi
printf '%s\n' "$(printf '%q ' "$@")" >> "$LOG" # one write, as several tasks do so at once
"""
SBATCH = """#!/usr/bin/env bash
export SLURM_JOB_ID=7 TASKS=0
while [[ $1 == --* ]]; do
  if [[ $1 == --array=1-8 ]]; then
    export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=8
  fi
  shift
done
exec bash "$@"
"""


class Fence(NamedTuple):
    """A fenced block of a page; with a title, the file of that name."""

    language: str
    title: str
    text: str


def fences(page):
    text = (DOCS / page).read_text()
    return [Fence(*found) for found in FENCE.findall(text)]


def prose(page):
    """A page without its fences."""
    return FENCE.sub("", (DOCS / page).read_text())


def commands(text):
    """The words of each command, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            at = words.index("&&")
            yield words[:at]
            words = words[at + 1 :]
        if words:
            yield words


class Checkout:
    """The repository's folders as a reader has them, plus what the page's commands write."""

    def __init__(self, folder, archives):
        self.folder, self.archives = folder, archives
        commit_launchers(folder)  # tpu_pod.sh refuses changes, and the repository may have some
        for name in ("benchmarks", "results"):
            (folder / name).symlink_to(command.REPOSITORY / name)
        pictures.folder(folder / "photos" / "pets")
        pictures.folder(folder / "photos" / "cifar10", width=32, height=32)
        imagenette(folder / "photos" / "imagenette2-320")
        (folder / "tfds").mkdir()
        images, labels = np.zeros((8, 28, 28), np.uint8), np.arange(8)
        for name in ("pathmnist", "fashion_mnist_jpeg"):
            np.savez(
                folder / f"{name}.npz",
                **{"train_images": images, "train_labels": labels},
                **{"test_images": images, "test_labels": labels},
            )
        self.log = folder / "started"
        (folder / "bin").mkdir()
        for name, text in {
            "python": PYTHON,
            "sbatch": SBATCH,
            "srun": SRUN,
            "gcloud": GCLOUD,
        }.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / "outcomes").write_text("0 0\n")
        self.environment = {"TFDS_DATA_DIR": str(folder / "tfds"), **COMPILER}

    def run(self, words):
        """Runs a command of a page; returns what it prints."""
        if words[0] in NOT_RUN:
            if words[0] == "pip":
                check_extras(words)
            return ""
        if words[0] == "python":
            module, *arguments = words[2:] if words[1] == "-m" else words[1:]
            if module == "randmix" and not arguments[0].startswith("-"):
                module = f"randmix {arguments.pop(0)}"
            flags = {argument.partition("=")[0] for argument in arguments}
            if LOOKS & flags:
                return self.program(module, *arguments)
            if "--compile_for" in flags:
                return self.program(module, *arguments, *COMPILE_FOR)
            quick = self.quick(module, arguments)
            return self.program("stand_ins", self.archives, *module.split(), *quick)
        return self.launch(words)

    def program(self, module, *arguments):
        done = command.run(module, *arguments, cwd=self.folder, env=self.environment)
        assert done.status == 0, (module, arguments, done.err)
        return done.out

    def quick(self, module, arguments):
        """The arguments of a command, extended to be quick and to find what isn't here."""
        arguments = [
            argument.replace(
                "=/usr/share/datasets/fashion-mnist", f"={self.archives}/fashion_mnist"
            )
            .replace("=/data/imagenet", f"={self.archives}/imagenet2012")
            .replace("--profile=100:104", "--profile=1:2")  # of the two steps of a quick run
            .replace("--set=steps=200", "--set=steps=2")
            .replace("--grid=model.depth=2,4", "--grid=model.depth=1")
            .replace("--seeds=3", "--seeds=1")
            for argument in arguments
        ]
        if module == "randmix prepare" and arguments[0] in SMALL and len(arguments) == 1:
            return [*arguments, f"--manual_dir={self.archives}/{arguments[0]}"]
        if any(a.startswith("--coordinator=") for a in arguments):
            return [*arguments, "--summary"]
        if "--preset=mnist" in arguments:
            return [*arguments, "--dry_run", "--override=batch_size=4"]  # it has no quick part
        return [*arguments, *QUICK.get(module.split("/")[0], ())]

    def launch(self, words):
        """Runs a script of launch/, checks the flags of each run it starts; returns its output."""
        assert words[0] == "sbatch" or words[0].startswith("launch/"), words
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        mine = {"PATH": path, "LOG": str(self.log), "CLOUD": str(self.folder), "POLL": "0"}
        done = subprocess.run(
            words,
            cwd=self.folder,
            env={**os.environ, **mine},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (words, done.stderr)
        started = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        for line in set(started):
            unbuffered, dash_m, module, *arguments = shlex.split(line)
            assert (unbuffered, dash_m) == ("-u", "-m"), line
            check = "--summary" if module == "randmix.main" else "--only_check_args"
            self.program(module, *arguments, check)
        assert started or "tpu_pod.sh" in words[0]
        return done.stdout


def imagenette(folder):
    """Imagenette's layout, with two of its ten classes."""
    for split, each in (("train", 6), ("val", 2)):
        for label, synset in enumerate(("n01440764", "n03888257")):
            (folder / split / synset).mkdir(parents=True)
            for k in range(each):
                image = pictures.encode(pictures.noise(10 * label + k))
                (folder / split / synset / f"{synset}_{split}_{k}.JPEG").write_bytes(image)


def check_extras(words):
    """Checks that an installation names existing extras."""
    project = tomllib.loads((command.REPOSITORY / "pyproject.toml").read_text())["project"]
    for names in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(names.split(",")) <= project["optional-dependencies"].keys(), words


def numbers_apart(text):
    """Text with # for every number or hash, and one space between columns."""
    text = re.sub(r"-[0-9a-f]{8}\b", "-#", text)
    text = re.sub(r"\d[\d,.]*", "#", text)
    return re.sub(r"([-━─])\1+", r"\1", re.sub(r"[ ┃│]+", " ", text))


def is_output(printed, shown):
    """Whether the text was printed; ... stands for part of a line or for several lines."""
    pattern = ""
    for line in shown.splitlines():
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += re.escape(line.rstrip()).replace(r"\.\.\.", r"[^\n]*") + r"[ ]*\n"
    return re.fullmatch(pattern, printed) is not None


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Small archives of every data set that needs a network."""
    folder = tmp_path_factory.mktemp("archives")
    for name, make in SMALL.items():
        make().write(folder / name)
    images = iter([pictures.encode(pictures.noise(k)) for k in range(100)])
    classes = {
        f"{name}.tar": pictures.tar({f"{name}_{k}.JPEG": next(images) for k in range(count)})
        for name, count in {"n01440764": 3, "n01443537": stand_ins.IMAGENET_TRAIN - 3}.items()
    }
    validation = {
        f"ILSVRC2012_val_{k:08}.JPEG": next(images) for k in range(1, stand_ins.IMAGENET_TEST + 1)
    }
    (folder / "imagenet2012").mkdir()
    (folder / "imagenet2012" / imagenet.TRAIN).write_bytes(pictures.tar(classes))
    (folder / "imagenet2012" / imagenet.VALIDATION).write_bytes(pictures.tar(validation))
    return folder


@pytest.fixture
def checkout(tmp_path, archives):
    return Checkout(tmp_path, archives)


def published_weights(path):
    """A small ConvMixer for photographs in PyTorch's names, as if it had been downloaded."""
    model = models.build("convmixer", width=8, depth=2, kernel_size=3, patch_size=7, num_classes=10)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))
    safetensors.numpy.save_file(randmix.convmixer_to_torch(model, variables, "timm"), path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if not p.startswith("api/")])
def test_the_page_runs(page, checkout, monkeypatch, capsys):
    if page == "data.md":
        tfds_sets.prepare("svhn_cropped", checkout.folder / "tfds")
        tfds_sets.prepare("cifar10_corrupted", checkout.folder / "tfds", config="fog_1")
    if page == "models.md":
        published_weights(checkout.folder / "convmixer_768_32.safetensors")
    monkeypatch.chdir(checkout.folder)
    monkeypatch.setenv("TFDS_DATA_DIR", checkout.environment["TFDS_DATA_DIR"])
    names, printed, shape = {}, "", str
    for fence in fences(page):
        if fence.language == "bash":
            printed = "".join(checkout.run(words) for words in commands(fence.text))
            shape = numbers_apart
        elif fence.language == "python":
            if fence.title:
                Path(fence.title).write_text(fence.text)
            capsys.readouterr()
            # A reader's session has JAX's own settings.
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                exec(compile(fence.text, page, "exec"), names)
            printed, shape = capsys.readouterr().out, str
        elif fence.language == "text":
            assert is_output(shape(printed), shape(fence.text)), (printed, fence.text)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"],
        cwd=command.REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "api" / "masks" / "index.html").exists()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", prose(page)):
        assert not target or (DOCS / page).parent.joinpath(target).exists(), target
    folders = {path.name for path in command.REPOSITORY.iterdir() if path.is_dir()}
    for name in re.findall(r"`([\w.-]+/[\w./*-]*)[^`]*`", prose(page)):
        if name.split("/")[0] in folders - {"runs"}:
            assert list(command.REPOSITORY.glob(name)), name


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_where_it_is_not_run(page):
    assert {fence.language for fence in fences(page)} <= {"bash", "python", "text", "bibtex"}
    shown = "".join(fence.text for fence in fences(page) if fence.language == "text")
    assert not re.findall(
        r"^\s*(?:\$ )?(?:python|pip|launch/|randmix|sbatch|docker|kubectl).*", shown, re.M
    )
    assert not re.findall(r"^\s*(?:```|(?:\$ )?(?:python -m|pip |launch/)).*", prose(page), re.M)


def test_only_commands_of_the_pages_are_excused():
    first = {
        words[0]
        for page in PAGES
        for f in fences(page)
        if f.language == "bash"
        for words in commands(f.text)
    }
    assert NOT_RUN.keys() <= first
