#!/usr/bin/env bash
# One run on a Cloud TPU pod slice, from requesting to deleting the slice:
#
#     launch/tpu_pod.sh --name=mine --zone=us-west4-a --accelerator=v5litepod-16 --spot -- \
#       --config=configs/digits.py --workdir=gs://bucket/runs/a
#
# The flags after -- are those of training, or of a command: randmix COMMAND [flags]. The workdir
# must be on gs://, or on a file system that --setup mounts. Workers get the commit of this
# checkout, so nothing may be left to commit. The script requests a queued resource and waits for
# it, installs the commit on all workers, and runs the same command on each. If the slice is
# preempted, it requests another one and resumes; if a process is told to stop (75), is killed by a
# signal or loses its connection, it restarts all of them: at most RESTARTS times. A mistake (2) and
# a bug (1) are final. It needs gcloud, with an account signed in.
#
# At the end, also after Ctrl-C, at which the run saves, it deletes the slice, unless --keep is
# given. If there is a slice of that name already, the script runs there, whatever its type, and
# leaves it there. While gcloud can't say whether there is one (no network, an expired login, an
# error of the service), the script asks again, at most TRIES times.
#
#     --name=NAME          name of the queued resource and the TPU
#     --zone=ZONE          zone of the TPU
#     --accelerator=TYPE   type of the TPU
#     --runtime=VERSION    software of the TPU VM (default v2-alpha-tpuv5-lite, for v5e;
#                          v6e: v2-alpha-tpuv6e, v5p: v2-alpha-tpuv5, v4:
#                          tpu-ubuntu2204-base)
#     --spot               use a Spot slice, which is cheaper but preemptible
#     --setup=COMMAND      command to run on each worker first, for example to mount or prepare data
#     --keep               don't delete the slice at the end
#     --dry_run            print the commands without running them
#
# Exit status: 0 done, 2 a mistake in the command, 1 a bug, too many restarts or no answer from
# gcloud, 128 plus the signal if one ended this script.
#
# Environment: RESTARTS (default 50), POLL (seconds between two questions to gcloud, default 30),
# TRIES (default 20).
set -uo pipefail

say() { echo "tpu_pod: $*" >&2; }
refuse() { say "$@"; exit 2; }
usage() {
  say "$@"
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

name='' zone='' accelerator='' runtime=v2-alpha-tpuv5-lite spot=() setup='' keep=no dry_run=no
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --keep) keep=yes ;;
    --dry_run) dry_run=yes ;;
    --) shift; break ;;
    *) usage "unknown flag $1; see below" ;;
  esac
  shift
done
[[ -n $name && -n $zone && -n $accelerator ]] ||
  usage "--name, --zone and --accelerator are needed"
(($#)) || usage "the run's flags are missing; give them after --"
module=randmix.main
if [[ $1 != -* ]]; then module=$1; shift; fi

flag() { # prints the value of flag $1 among the other arguments; fails if it isn't there
  local name=$1 value='' found=1
  shift
  while (($#)); do
    case $1 in
      "--$name="* | "-$name="*) value=${1#*=} found=0 ;;
      "--$name" | "-$name") value=${2:-} found=0 ;;
    esac
    shift
  done
  echo "$value"
  return "$found"
}

# What would go wrong only on the slice is refused before it is requested.
workdir=$(flag workdir "$@")
[[ -n $workdir ]] ||
  refuse "--workdir is missing, and each worker would write to its own disk; give" \
    "--workdir=gs://BUCKET/FOLDER after --"
[[ $workdir == gs://?* || -n $setup ]] ||
  refuse "--workdir=$workdir: each worker would write to its own disk; give gs://BUCKET/FOLDER," \
    "or a folder of a file system that --setup=COMMAND mounts on all workers"
root=$(cd -P "$(dirname "$0")/.." && pwd)
commit=$(git -C "$root" rev-parse --verify --short HEAD 2>&1) ||
  refuse "workers get a commit of $root, but git says ${commit%%$'\n'*}; clone randmix with git"
if config=$(flag config "$@"); then
  file=${config%%:*} # the rest is its variant
  if [[ $file == /* ]] || ! git -C "$root" cat-file -e "$commit:./$file" 2>/dev/null; then
    refuse "--config=$config: $file isn't in commit $commit of $root, which is what workers get;" \
      "commit it there, and give its path from there"
  fi
fi
changes=$(
  git -C "$root" status --porcelain --untracked-files=no
  git -C "$root" status --porcelain --untracked-files=all -- randmix | grep '^??'
)
[[ -z $changes ]] ||
  refuse "$root has changes that aren't in commit $commit, which is what workers get" \
    "($(cut -c4- <<<"$changes" | paste -sd ' ')); commit them, or run git stash -u"
[[ $dry_run == yes ]] || command -v gcloud >/dev/null ||
  refuse "gcloud isn't installed; see https://cloud.google.com/sdk/docs/install"

printf -v command '%q ' .venv/bin/python -u -m "$module" "$@"
folder=randmix-checkout
# The Python of the TPU VM may be too old; uv provides one.
make_venv="curl -LsSf https://astral.sh/uv/install.sh | sh"
make_venv+=" && ~/.local/bin/uv venv -q --clear --python=3.12 .venv"
make_venv+=" && ~/.local/bin/uv pip install -q --python=.venv/bin/python '.[tpu,gcs,images]'"
delete_it="gcloud compute tpus queued-resources delete $name --zone=$zone --force --quiet"

SAVING=120 # seconds that a run has to save after Ctrl-C
tries=${TRIES:-20}
errors=$(mktemp) # of the latest gcloud command
ours=no          # whether this script requested the queued resource that there is
perhaps=no       # whether it requested one without an answer
adopted=no       # whether it found one
job=''           # the process group of the run

pause() { sleep "${POLL:-30}"; }
reason() { grep -m1 ERROR "$errors" || head -n1 "$errors"; }

gcloud_tpus() { # runs, or prints, a gcloud command
  if [[ $dry_run == yes ]]; then
    printf '%q ' gcloud compute tpus "$@"
    echo
  else
    gcloud compute tpus "$@"
  fi
}
# Most workers print nothing for hours. Messages of its own keep each connection open, and find a
# worker that is lost.
on_all_workers() {
  gcloud_tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --ssh-flag=-oServerAliveInterval=30 \
    --command="$1"
}

ask() { # sets state to the queued resource's, or to NONE; asks again until there is an answer
  local try
  for ((try = 1; try <= tries; try++)); do
    if state=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
      --format='value(state.state)' 2>"$errors") && [[ -n $state ]]; then
      return
    fi
    if grep -q NOT_FOUND "$errors"; then
      state=NONE
      return
    fi
    say "gcloud can't describe $name: $(reason)"
    pause
  done
  say "gave up after asking $tries times"
  exit 1
}

delete() { gcloud_tpus queued-resources delete "$name" --zone="$zone" --force --quiet; }

create() { # requests the slice; sets ours or perhaps, unless the request is refused
  if gcloud_tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${spot[@]}" 2>"$errors"; then
    ours=yes
    return
  fi
  say "gcloud can't create $name: $(reason)"
  case $(<"$errors") in
    *INVALID_ARGUMENT* | *PERMISSION_DENIED*) exit 1 ;; # it never will
    *ALREADY_EXISTS* | *UNAUTHENTICATED* | *RESOURCE_EXHAUSTED*) ;;
    *) perhaps=yes ;; # the answer may have been lost
  esac
  return 1
}

request() { # requests the slice if there is none, and waits until it is ready
  if [[ $dry_run == yes ]]; then
    create
    return
  fi
  local failures=0
  while ((failures < tries)); do
    ask
    if [[ $state != NONE && $ours == no ]]; then
      if [[ $perhaps == yes ]]; then
        ours=yes
      elif [[ $adopted == no ]]; then
        adopted=yes
        say "$name is there already ($state): using it, and leaving it there at the end"
      fi
    fi
    case $state in
      ACTIVE) return ;;
      FAILED)
        gcloud compute tpus queued-resources describe "$name" --zone="$zone" >&2
        say "the request failed; see above"
        exit 1
        ;;
      SUSPENDED) # preempted: such a request never gets active again
        if [[ $ours == no ]]; then
          say "$name is suspended, and this script didn't request it; give another --name, or" \
            "delete it first"
          exit 1
        fi
        if delete; then ours=no perhaps=no; else ((failures++)); fi
        ;;
      NONE) create || ((failures++)) ;; # an own one may be listed late, and then exists already
    esac
    pause
  done
  say "gave up after $failures failures"
  exit 1
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git -C "$root" archive --format=tar.gz --output="$archive" "$commit" &&
    gcloud_tpus tpu-vm scp "$archive" "$name:$folder.tar.gz" --zone="$zone" --worker=all &&
    on_all_workers "mkdir -p $folder && tar xzf $folder.tar.gz -C $folder && cd $folder && \
$make_venv && (${setup:-true})"
  local status=$?
  rm -f "$archive"
  return $status
}

run() { # on all workers; prints their output, and sets outcome
  local log
  log=$(mktemp)
  # First kills a process left by a lost connection. gcloud's exit status isn't the workers', so
  # each worker prints its own. In the background, in its own process group (-m): bash would
  # otherwise handle a signal only after the run.
  set -m
  on_all_workers "cd $folder; echo randmix-started; kill -KILL \$(cat pid) 2>/dev/null; \
$command & echo \$! >pid; wait \$!; echo \"randmix-status \$?\"" </dev/null 2>&1 | tee "$log" &
  job=$(jobs -p %%)
  set +m
  wait "$!"
  job=''
  local statuses lost
  statuses=$(sed -n 's/.*randmix-status \([0-9]*\)$/\1/p' "$log" | sort -n | uniq | tr '\n' ' ')
  lost=$(($(grep -c randmix-started "$log") - $(grep -c 'randmix-status [0-9]*$' "$log")))
  rm -f "$log"
  # The workers that are left exit with 1 as well.
  ((lost > 0)) && statuses+="lost "
  case " $statuses" in
    *' 2 '*) outcome=2 ;;
    ' 0 ') outcome=0 ;;
    ' 1 ' | ' 0 1 ') outcome=1 ;;
    *) outcome=restart ;; # 75, 128 and above, or nothing from a lost worker
  esac
}

# shellcheck disable=SC2317,SC2329 # finish calls it
delete_slice() { # Ctrl-C ends it
  local try
  for ((try = 1; try <= tries; try++)); do
    say "deleting $name"
    if delete 2>"$errors" || grep -q NOT_FOUND "$errors"; then return; fi
    say "gcloud can't delete $name: $(reason)"
    ((try < tries)) && pause
  done
  say "$name is still there, and is charged for; to delete it: $delete_it"
}

# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
  trap '' TERM HUP # bash passes on the SIGHUP of a closed terminal, which comes twice then
  trap : INT
  if [[ -n $job ]]; then # gcloud passes no signal on
    say "waiting for the run to save, at most $SAVING seconds; Ctrl-C again ends that"
    on_all_workers "p=\$(cat $folder/pid) && kill -TERM \$p && timeout $SAVING tail -f /dev/null \
--pid=\$p" </dev/null >/dev/null 2>&1
    kill -TERM -- "-$job"
  fi
  trap 'tries=0' INT
  if [[ $dry_run == yes ]]; then
    [[ $keep == yes ]] || delete
  elif [[ $ours == no && $perhaps == yes ]]; then
    say "the request for $name may have gone through; if so, this deletes it: $delete_it"
  elif [[ $ours == no && $adopted == yes ]]; then
    say "leaving $name, which was there before; to delete it: $delete_it"
  elif [[ $ours == yes && $keep == yes ]]; then
    say "keeping $name; to delete it: $delete_it"
  elif [[ $ours == yes ]]; then
    delete_slice
  fi
  rm -f "$errors"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

failed=0 # installations in a row
for ((attempt = 0; attempt <= ${RESTARTS:-50}; attempt++)); do
  request
  if ! install; then
    ask
    if [[ $state == ACTIVE ]] && ((++failed == 3)); then
      say "the installation failed three times"
      exit 1
    fi
    pause
    continue
  fi
  failed=0
  run
  [[ $dry_run == yes ]] && exit 0
  [[ $outcome == 2 || $outcome == 0 ]] && exit "$outcome"
  # A lost worker prints no status and the others' can be anything: only the slice's state counts.
  if [[ $outcome == 1 ]]; then
    ask
    [[ $state == ACTIVE ]] && exit 1
  fi
  say "starting again (restart $((attempt + 1)))"
done
say "stopped after ${RESTARTS:-50} restarts"
exit 1
