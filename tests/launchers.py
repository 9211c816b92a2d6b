"""What the tests of launch/ share: its scripts, a user's flags, and stand-ins for clouds."""

import os
import shutil
import subprocess

import command

LAUNCH = command.REPOSITORY / "launch"
RUN = (
    "--config=configs/digits.py",
    "--config.train=~role('spatial') | depth(2, None)",
    "--workdir=gs://bucket/a",
)


def launch(script, *arguments, **environment):
    return subprocess.run(
        [LAUNCH / script, *arguments],  # or a script elsewhere, by its absolute path
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def assert_parses(arguments):
    """Checks that randmix.main accepts the flags; --summary only shows what would be trained."""
    done = command.run("randmix.main", *arguments, "--summary", cwd=command.REPOSITORY)
    assert done.status == 0, (arguments, done.err)


def git(folder, *arguments):
    who = ("-c", "user.name=me", "-c", "user.email=me@here")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True)


def commit_launchers(folder):
    """Makes a folder a git repository that also has the launchers and the configs."""
    for name in ("launch", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(command.REPOSITORY / name, folder / name, ignore=ignore)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=all")


GCLOUD = """#!/usr/bin/env bash
# A cloud whose workers end as $CLOUD/outcomes says, one line per run; "lost" is a preemption, "-" a
# worker that is lost, and "wait" doesn't end. $CLOUD/state is the queued resource's. Each line of
# $CLOUD/VERB answers one call: "ok" is obeyed; any other is an error, of which "lost ..." comes
# after obeying.
verb=$4
[[ $verb == ssh && "$*" != *randmix-status* ]] && verb=install
[[ $verb == install && "$*" == *"kill -TERM"* ]] && verb=save
answer=ok
if [[ -s $CLOUD/$verb ]]; then
  read -r answer < "$CLOUD/$verb"; sed -i 1d "$CLOUD/$verb"
fi
fail() { echo "ERROR: (gcloud.compute.tpus.$verb) $1" >&2; exit 1; }
[[ $answer == ok || $answer == lost* ]] || fail "$answer"
case $verb in
  describe) cat "$CLOUD/state" 2>/dev/null || fail "NOT_FOUND: Resource 'mine' was not found" ;;
  create)
    [[ -f $CLOUD/state ]] && fail "ALREADY_EXISTS: Resource 'mine' already exists"
    echo ACTIVE > "$CLOUD/state"; echo create >> "$CLOUD/log" ;;
  delete) rm "$CLOUD/state"; echo delete >> "$CLOUD/log" ;;
  install) echo install >> "$CLOUD/installs" ;;
  save) echo save >> "$CLOUD/log" ;;
  ssh)
    read -r outcome < "$CLOUD/outcomes"; sed -i 1d "$CLOUD/outcomes"
    echo "run $outcome" >> "$CLOUD/log"
    if [[ $outcome == wait ]]; then sleep 60; exit 1; fi
    if [[ $outcome == lost ]]; then echo SUSPENDED > "$CLOUD/state"; exit 1; fi
    for status in $outcome; do
      echo "randmix-started"
      [[ $status == - ]] || echo "randmix-status $status"
    done ;;
esac
[[ $answer == ok ]] || fail "$answer"
"""
SRUN = """#!/usr/bin/env bash
# Runs the tasks sequentially, each in a process group that ends with its first process, as SLURM's
# do; $TASKS has their exit statuses. On a SIGTERM it kills the task, as SLURM's does; scancel's
# arrives as SIGUSR1.
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=-1
trap 'kill -KILL -- "-$task"' TERM
trap 'kill -TERM -- "-$task"' USR1
echo $$ > "$0.pid"
largest=0
for status in $TASKS; do
  SLURM_PROCID=$((SLURM_PROCID + 1))
  STATUS=$status setsid "$@" &
  task=$!
  while wait "$task"; got=$?; kill -0 "$task" 2>/dev/null; do :; done
  kill -KILL -- "-$task" 2>/dev/null
  ((got > largest)) && largest=$got
done
exit $largest
"""
SCANCEL = """#!/usr/bin/env bash
# Signals the job's steps alone.
[[ $* == "--quiet --signal=TERM 5_3" ]] && kill -USR1 "$(< "${0%/*}/srun.pid")"
"""
