"""The commit that produced a result: of the repository that holds the code, and of no other."""

import subprocess

import pytest

from randmix.workdir import artifacts


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a file in the place of the code, not yet added; runs git in it."""
    (tmp_path / "code.py").write_text("")
    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / "code.py"))
    artifacts.commit.cache_clear()
    yield lambda *arguments: subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=b@c", "-C", tmp_path, *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    artifacts.commit.cache_clear()


def test_code_outside_a_repository_has_no_commit(repository):
    assert artifacts.commit() is None


def test_code_in_another_projects_repository_has_no_commit(repository, tmp_path):
    repository("init", "-q")
    (tmp_path / "theirs.txt").write_text("")
    repository("add", "theirs.txt")
    repository("commit", "-qm", "theirs")
    assert artifacts.commit() is None


def test_changed_code_has_a_mark_behind_its_commit(repository, tmp_path):
    repository("init", "-q")
    repository("add", "code.py")
    repository("commit", "-qm", "ours")
    commit = repository("rev-parse", "HEAD")[:12]
    assert artifacts.commit() == commit
    artifacts.commit.cache_clear()
    (tmp_path / "code.py").write_text("changed")
    assert artifacts.commit() == f"{commit}+"
