#!/usr/bin/env bash
# One run on a Cloud TPU pod slice, from requesting to deleting the slice:
#
#     launch/tpu_pod.sh --name=mine --zone=us-west4-a --accelerator=v5litepod-16 --spot -- \
#       --config=configs/digits.py --workdir=gs://bucket/runs/a
#
# The flags after -- are those of randmix.main, or of the module that precedes them. The script
# requests a queued resource and waits for it, installs the committed state of this checkout on all
# workers, and runs the same command on each. If the slice is preempted, it requests another one and
# resumes; if a process is told to stop (75), is killed by a signal or loses its connection, it
# restarts all of them: at most RESTARTS times (default 50). A mistake (2) and a bug (1) are final.
# At the end, also after Ctrl-C, it deletes the slice, unless --keep is given. It needs gcloud, with
# an account signed in. The workdir must be on gs://, or on a file system that --setup mounts.
#
#     --name=NAME          name of the queued resource and the TPU
#     --zone=ZONE          zone of the TPU
#     --accelerator=TYPE   type of the TPU
#     --runtime=VERSION    software of the TPU VM (default v2-alpha-tpuv5-lite, for v5e;
#                          v6e: v2-alpha-tpuv6e)
#     --spot               use a Spot slice, which is cheaper but preemptible
#     --setup=COMMAND      command to run on each worker first, for example to mount or prepare data
#     --keep               don't delete the slice at the end
#     --dry_run            print the commands without running them
#
# Exit status: 0 done, 2 a mistake in the command, 1 a bug or too many restarts.
set -uo pipefail

usage() {
  [[ $# -gt 0 ]] && echo "tpu_pod: $*" >&2
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

name='' zone='' accelerator='' runtime=v2-alpha-tpuv5-lite spot=() setup=true keep=no dry_run=no
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
printf -v command '%q ' .venv/bin/python -u -m "$module" "$@"
folder=randmix-checkout
# The Python of the TPU VM may be too old; uv provides one.
make_venv="curl -LsSf https://astral.sh/uv/install.sh | sh"
make_venv+=" && ~/.local/bin/uv venv -q --clear --python=3.12 .venv"
make_venv+=" && ~/.local/bin/uv pip install -q --python=.venv/bin/python '.[tpu,gcs]'"

gcloud_tpus() { # runs, or prints, a gcloud command
  if [[ $dry_run == yes ]]; then
    printf '%q ' gcloud compute tpus "$@"
    echo
  else
    gcloud compute tpus "$@"
  fi
}
on_all_workers() { gcloud_tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

state() { # prints the queued resource's state; nothing if it doesn't exist
  if [[ $dry_run == yes ]]; then
    echo ACTIVE
  else
    gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
      --format='value(state.state)' 2>/dev/null
  fi
}

delete() { gcloud_tpus queued-resources delete "$name" --zone="$zone" --force --quiet; }

create() {
  gcloud_tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${spot[@]}"
}

request() { # requests the slice if there is none, and waits until it is ready
  if [[ $dry_run == yes ]]; then
    create
    return
  fi
  while :; do
    case $(state) in
      ACTIVE) return ;;
      FAILED)
        echo "tpu_pod: the request failed; see gcloud compute tpus queued-resources describe" >&2
        exit 1
        ;;
      SUSPENDED) delete && create || exit 1 ;; # preempted: such a request never gets active again
      '') create || exit 1 ;;
    esac
    sleep "${POLL:-30}"
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD &&
    gcloud_tpus tpu-vm scp "$archive" "$name:$folder.tar.gz" --zone="$zone" --worker=all &&
    on_all_workers "mkdir -p $folder && tar xzf $folder.tar.gz -C $folder && cd $folder && \
$make_venv && $setup"
  local status=$?
  rm -f "$archive"
  return $status
}

run() { # on all workers; prints their output, and sets outcome
  local log
  log=$(mktemp)
  # First kills a process left by a lost connection. gcloud's exit status isn't the workers', so
  # each worker prints its own.
  on_all_workers "cd $folder; kill -KILL \$(cat pid) 2>/dev/null; $command & echo \$! >pid; \
wait \$!; echo \"randmix-status \$?\"" 2>&1 | tee "$log"
  local statuses
  statuses=$(sed -n 's/.*randmix-status \([0-9]*\)$/\1/p' "$log" | sort -n | uniq | tr '\n' ' ')
  rm -f "$log"
  case " $statuses" in
    *' 2 '*) outcome=2 ;;
    ' 0 ') outcome=0 ;;
    ' 1 ' | ' 0 1 ') outcome=1 ;;
    *) outcome=restart ;; # 75, 128 and above, or nothing from a lost worker
  esac
}

# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() { [[ $keep == yes ]] || delete; }
trap finish EXIT
trap 'exit 1' INT TERM

for ((attempt = 0; attempt <= ${RESTARTS:-50}; attempt++)); do
  request
  if ! install; then
    [[ $(state) == ACTIVE ]] && { echo "tpu_pod: the installation failed" >&2; exit 1; }
    continue
  fi
  run
  [[ $dry_run == yes ]] && exit 0
  # A lost worker prints no status and the others' can be anything: only the slice's state counts.
  if [[ $outcome == 2 || $outcome == 0 ]] || [[ $outcome == 1 && $(state) == ACTIVE ]]; then
    exit "$outcome"
  fi
  echo "tpu_pod: starting again (restart $((attempt + 1)))" >&2
done
echo "tpu_pod: stopped after ${RESTARTS:-50} restarts" >&2
exit 1
