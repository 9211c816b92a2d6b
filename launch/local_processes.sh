#!/usr/bin/env bash
# One run on N processes of this machine, as on N hosts: to try out a run for several hosts, or one process a GPU.
#
#     launch/local_processes.sh 2 --config=configs/digits.py --workdir=runs/two
#     launch/local_processes.sh 2 randmix.evaluate --workdir=runs/two
#
# The flags are those of randmix.main, or of the module that stands before them. Every line is prefixed with the
# number of its process. Ctrl-C or SIGTERM stops all; they save, and the same command goes on.
#
# If any process was preempted (status 75) or died by a signal, the others are ended and all start again, RESTARTS
# times at most (default 20). A mistake (2), a bug (1) and your own signal are final.
# Exit status: 0 done, 2 a mistake in the command, 75 stopped and saved, 1 a bug or too many restarts.
#
# Environment: PYTHON (default python), RESTARTS, GRACE (seconds that the others have to end by themselves once one
# has failed, default 120: more than --heartbeat_timeout).
set -uo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[[ ${1:-} =~ ^[1-9][0-9]*$ && $# -ge 2 ]] || usage
count=$1; shift
module=randmix.main
if [[ $1 != -* ]]; then module=$1; shift; fi
python=${PYTHON:-python}
restarts=${RESTARTS:-20}
grace=${GRACE:-120}

pids=()
stopped=no
forward() { stopped=yes; kill -TERM "${pids[@]}" 2>/dev/null; }
trap forward TERM INT

start() { # all processes; fills pids
  local port process
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') || exit 1
  pids=()
  for ((process = 0; process < count; process++)); do
    # A session of its own: Ctrl-C reaches it through this script alone, once.
    setsid "$python" -u -m "$module" "$@" --coordinator="localhost:$port" --num_processes="$count" \
      --process_id="$process" > >(sed -u "s/^/[$process] /") 2> >(sed -u "s/^/[$process] /" >&2) &
    pids+=($!)
  done
}

finish() { # waits for all processes; sets statuses. Once one has failed, the others have the grace period.
  local process left=$count failed_at=
  statuses=()
  while ((left)); do
    for ((process = 0; process < count; process++)); do
      if [[ -z ${statuses[process]:-} ]] && ! kill -0 "${pids[process]}" 2>/dev/null; then
        wait "${pids[process]}" 2>/dev/null # bash itself would print the command of one that a signal ended
        statuses[process]=$?
        left=$((left - 1))
        if ((statuses[process])); then
          echo "local_processes: process $process ended with status ${statuses[process]}" >&2
          failed_at=${failed_at:-$SECONDS}
        fi
      fi
    done
    if [[ -n $failed_at ]] && ((SECONDS - failed_at >= grace)); then
      kill -KILL "${pids[@]}" 2>/dev/null
    fi
    sleep 0.2
  done
}

verdict() { # finished, mistake, restart or bug
  local status verdict=finished
  for status in "${statuses[@]}"; do
    case $status in
      0) ;;
      2) echo mistake; return ;;
      1) [[ $verdict == finished ]] && verdict=bug ;;
      *) verdict=restart ;; # 75, or 128 and the signal; then another's 1 is only an echo of that
    esac
  done
  echo "$verdict"
}

for ((attempt = 0; ; attempt++)); do
  start "$@"
  finish
  case $(verdict) in
    finished) exit 0 ;;
    mistake) exit 2 ;;
    bug) exit 1 ;;
  esac
  [[ $stopped == yes ]] && exit 75
  if ((attempt >= restarts)); then
    echo "local_processes: stopped after $attempt restarts" >&2
    exit 1
  fi
  echo "local_processes: starting all $count processes again (restart $((attempt + 1)) of $restarts)" >&2
done
