#!/usr/bin/env bash
# One host's part of launch/tpu_vm.sh: start training in the background, say how it goes, stop it.
# Usage: launch/host.sh start [arguments of medvlp_jax.main] | state | stop
# ~/medvlp_run (or RUN_DIR) holds pid, log and, once training has ended, its exit code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run_dir=${RUN_DIR:-$HOME/medvlp_run}

alive() { [[ -f $run_dir/pid ]] && kill -0 "$(<"$run_dir/pid")" 2>/dev/null; }

case ${1:-} in
  start)
    if alive; then echo "training already runs here, process $(<"$run_dir/pid"); stop it first" >&2 && exit 1; fi
    if [[ ! -x .venv/bin/python ]]; then echo "$PWD/.venv is missing; run 'launch/tpu_vm.sh install'" >&2 && exit 1; fi
    mkdir -p "$run_dir" && rm -f "$run_dir/pid" "$run_dir/code"
    printf '== %s %s\n' "$(date -u +%FT%TZ)" "${*:2}" >>"$run_dir/log"
    # shellcheck disable=SC2016  # expanded by the inner shell, which outlives the connection and keeps the exit code
    setsid nohup bash -c 'run_dir=$1; shift; "$@" & echo $! >"$run_dir/pid"; wait $!; echo $? >"$run_dir/code"' host \
      "$run_dir" .venv/bin/python -m medvlp_jax.main "${@:2}" >>"$run_dir/log" 2>&1 </dev/null &
    until [[ -s $run_dir/pid ]]; do sleep 0.1; done
    echo "started, process $(<"$run_dir/pid"), log in $run_dir/log" ;;
  state) # running; none: never started; died: gone without an exit code; else the exit code
    if [[ -f $run_dir/code ]]; then state=$(<"$run_dir/code")
    elif alive; then state=running
    elif [[ -f $run_dir/pid ]]; then state=died
    else state=none; fi
    echo "training=$state" ;;
  stop) # SIGTERM lets the trainer save and end; one that waits for a lost host cannot: SIGKILL after STOP_S seconds
    if alive; then kill "$(<"$run_dir/pid")"; fi
    for ((i = 0; i < 10 * ${STOP_S:-120}; i++)); do alive || exit 0; sleep 0.1; done
    kill -KILL "$(<"$run_dir/pid")" 2>/dev/null || true ;;
  *) echo "host.sh: unknown subcommand '${1:-}'. Known: start, state, stop" >&2 && exit 2 ;;
esac
