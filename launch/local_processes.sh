#!/usr/bin/env bash
# One run on N processes of this machine, as on N hosts: to try a multi-host run.
#
#     launch/local_processes.sh 2 --config=configs/digits.py --workdir=runs/two
#     launch/local_processes.sh 2 randmix evaluate --workdir=runs/two
#
# The flags are those of training, or of the command that precedes them. Every output line is
# prefixed with its process number. Ctrl-C, SIGTERM or closing the terminal stops all processes
# after saving; the same command resumes.
#
# If any process is preempted (status 75) or killed by a signal, the others are stopped and all
# start again, at most RESTARTS times (default 20). A mistake (2), a bug (1) and your own signal are
# final. Exit status: 0 done, 2 a mistake in the command, 75 stopped and saved, 1 a bug or too many
# restarts.
#
# Environment: PYTHON (default python), RESTARTS, GRACE (seconds that the other processes have to
# exit after one has failed, default 120, which must exceed --heartbeat_timeout).
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
trap forward TERM INT HUP

prefix() { # a process that could no longer print would end before it has saved
  trap '' TERM INT HUP
  sed -u "s/^/[$1] /" || cat >/dev/null # the terminal has gone
}

start() { # all processes; fills pids
  local port process
  local find_port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
  port=$("$python" -c "$find_port") || {
    echo "local_processes: can't run $python; name another one, for example PYTHON=python3" >&2
    exit 2
  }
  pids=()
  for ((process = 0; process < count; process++)); do
    # In a separate session, so that Ctrl-C reaches it only once, through this script.
    setsid "$python" -u -m "$module" "$@" --coordinator="localhost:$port" --num_processes="$count" \
      --process_id="$process" > >(prefix "$process") 2> >(prefix "$process" >&2) &
    pids+=($!)
  done
  if [[ $stopped == yes ]]; then forward; fi # it may have come before the last one started
}

finish() { # waits for all processes, after a failure up to the grace period; sets statuses
  local process left=$count failed_at=
  statuses=()
  while ((left)); do
    for ((process = 0; process < count; process++)); do
      if [[ -z ${statuses[process]:-} ]] && ! kill -0 "${pids[process]}" 2>/dev/null; then
        # Without the redirection bash prints the command of a process that a signal ended.
        wait "${pids[process]}" 2>/dev/null
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
      *) verdict=restart ;; # 75, or 128 plus the signal; another process's 1 only follows from it
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
  echo "local_processes: starting all $count processes again" \
    "(restart $((attempt + 1)) of $restarts)" >&2
done
