#!/usr/bin/env bash
# One run on a Cloud TPU pod slice, from the request to the release:
#
#     launch/tpu_pod.sh --name=mine --zone=us-west4-a --accelerator=v5litepod-16 --spot -- \
#       --config=configs/digits.py --workdir=gs://bucket/runs/a
#
# The flags after -- are those of randmix.main, or of the module that stands before them. It asks for a queued resource
# and waits for it, installs this checkout (what is committed) on all workers, and runs the same command on each, under
# the workers' numbers. When the slice is preempted it asks for another one and goes on; when a process was told to stop
# (75), died by a signal or lost its connection, it starts all again: RESTARTS times at most (default 50). A mistake (2)
# and a bug (1) are final. At the end, Ctrl-C included, the slice is deleted, unless --keep. It needs gcloud, signed in.
# The workdir must be on gs://, or on a file system that --setup mounts.
#
#     --name=NAME          of the queued resource and the TPU
#     --zone=ZONE  --accelerator=TYPE
#     --runtime=VERSION    of the TPU VM (default v2-alpha-tpuv5-lite, for v5e; v6e: v2-alpha-tpuv6e)
#     --spot               preemptible, and cheaper
#     --setup=COMMAND      on each worker, before the run, for example one that mounts or prepares the data
#     --keep               don't delete the slice at the end
#     --dry_run            print the commands, run none
#
# Exit status: 0 done, 2 a mistake in the command, 1 a bug, or too many restarts.
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
[[ -n $name && -n $zone && -n $accelerator ]] || usage "--name, --zone and --accelerator are needed"
(($#)) || usage "the flags of the run are missing, after --"
module=randmix.main
if [[ $1 != -* ]]; then module=$1; shift; fi
printf -v command '%q ' .venv/bin/python -u -m "$module" "$@"
folder=randmix-checkout
# The TPU VMs' own Python may be too old; uv brings one.
make_venv="curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv -q --clear --python=3.12 .venv"
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

state() { # of the queued resource; nothing where there is none
  if [[ $dry_run == yes ]]; then
    echo ACTIVE
  else
    gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' 2>/dev/null
  fi
}

delete() { gcloud_tpus queued-resources delete "$name" --zone="$zone" --force --quiet; }

create() {
  gcloud_tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${spot[@]}"
}

request() { # asks for the slice if there is none, and waits until it is there
  if [[ $dry_run == yes ]]; then
    create
    return
  fi
  while :; do
    case $(state) in
      ACTIVE) return ;;
      FAILED) echo "tpu_pod: the request failed; gcloud compute tpus queued-resources describe says why" >&2; exit 1 ;;
      SUSPENDED) delete && create || exit 1 ;; # preempted: such a request never comes back
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
    on_all_workers "mkdir -p $folder && tar xzf $folder.tar.gz -C $folder && cd $folder && $make_venv && $setup"
  local status=$?
  rm -f "$archive"
  return $status
}

run() { # on all workers; prints what they print, and sets outcome
  local log
  log=$(mktemp)
  # What a lost connection has left behind is ended first. gcloud's status doesn't tell the workers': each says its own.
  on_all_workers "cd $folder; kill -KILL \$(cat pid) 2>/dev/null; $command & echo \$! >pid; wait \$!; \
echo \"randmix-status \$?\"" 2>&1 | tee "$log"
  local statuses
  statuses=$(sed -n 's/.*randmix-status \([0-9]*\)$/\1/p' "$log" | sort -n | uniq | tr '\n' ' ')
  rm -f "$log"
  case " $statuses" in
    *' 2 '*) outcome=2 ;;
    ' 0 ') outcome=0 ;;
    ' 1 ' | ' 0 1 ') outcome=1 ;;
    *) outcome=restart ;; # 75, 128 and more, or nothing from a worker that is gone
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
  # A worker that vanished says nothing, and the others what they liked; then only the slice's state counts.
  if [[ $outcome == 2 || $outcome == 0 ]] || [[ $outcome == 1 && $(state) == ACTIVE ]]; then
    exit "$outcome"
  fi
  echo "tpu_pod: starting again (restart $((attempt + 1)))" >&2
done
echo "tpu_pod: stopped after ${RESTARTS:-50} restarts" >&2
exit 1
