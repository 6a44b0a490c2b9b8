#!/usr/bin/env bash
# Rehearse a multi-host run on one machine: N JAX processes on the CPU, each with D simulated devices.
# shellcheck disable=SC2317,SC2329  # functions that only traps call
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/local_multiprocess.sh N [options] -- COMMAND [ARGS...]
  N              number of processes
  --devices D    simulated devices per process (default 1)
  --logs DIR     process i writes DIR/process_i.log (default: a new temporary folder, printed)
  --port P       coordinator port on 127.0.0.1 (default: a free one)
  --grace S      seconds between SIGTERM and SIGKILL for the others once a process failed (default 10)
  --dry-run      print the N commands instead of running them
Every process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Process 0 is also shown here.
The first SIGINT or SIGTERM is passed on to every process, the second one kills them.
Exit code: that of the first process to fail, else 0.
Example:
  launch/local_multiprocess.sh 2 --devices 4 -- \
    python -m medvlp_jax.main --config configs/imitate.py:demo --workdir runs/demo
TEXT
}
fail() { printf 'local_multiprocess.sh: %s\n\n' "$1" >&2; usage >&2; exit 2; }
say() { printf 'local_multiprocess.sh: %s\n' "$1" >&2; }
positive() { [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || fail "$1 must be a positive whole number, got '$2'."; }

((BASH_VERSINFO[0] >= 5)) || fail "needs bash 5 or newer, this is $BASH_VERSION."
num_processes='' devices=1 logs='' port='' grace=10 dry_run=0
while (($#)); do
  case $1 in
    --devices | --logs | --port | --grace)
      [[ $# -ge 2 && $2 != -- ]] || fail "$1 needs a value."
      declare "${1#--}=$2" && shift 2 ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    -*) fail "unknown option '$1'. Known: --devices --logs --port --grace --dry-run. The command goes behind '--'." ;;
    *) [[ -z $num_processes ]] || fail "unexpected argument '$1'. Put '--' before the command."
      num_processes=$1 && shift ;;
  esac
done
[[ -n $num_processes ]] || fail 'the number of processes is missing.'
positive 'the number of processes' "$num_processes"
positive --devices "$devices"
positive --grace "$grace"
[[ -z $port ]] || positive --port "$port"
(($#)) || fail "the command is missing; it goes behind '--'."

environment() { # of process $1, one NAME=value per line
  local flags=${XLA_FLAGS:-}
  printf '%s\n' JAX_PLATFORMS=cpu "XLA_FLAGS=${flags:+$flags }--xla_force_host_platform_device_count=$devices" \
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$num_processes" "JAX_PROCESS_ID=$1"
}
if ((dry_run)); then
  : "${port:=FREE_PORT}"
  for ((i = 0; i < num_processes; i++)); do
    mapfile -t settings < <(environment "$i")
    { printf '%q ' env "${settings[@]}" "$@" && printf '> %q/process_%d.log 2>&1 &\n' "${logs:-LOGS}" "$i"; }
  done
  exit 0
fi

command -v "$1" >/dev/null || fail "command '$1' not found."
[[ -n $logs ]] || { logs=$(mktemp -d "${TMPDIR:-/tmp}/local_multiprocess.XXXXXX") && say "logs in $logs"; }
mkdir -p "$logs"
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
[[ -n $port ]] || port=$(python3 -c "$free_port")
pipe_dir=$(mktemp -d) && mkfifo "$pipe_dir/process_0"
orphan_guard=() # where util-linux has it: the processes end with this script, even after a SIGKILL
if setpriv --pdeathsig KILL true 2>/dev/null; then orphan_guard=(setpriv --pdeathsig KILL); fi

pids=() codes=() signals=0 show=''
signal_all() { # $1 signal, $2 '-' for whole process groups. Only the processes themselves are asked to end: a data
  local i      # worker that dies of a SIGTERM would cost its parent the checkpoint that it is about to write.
  for i in "${!pids[@]}"; do
    [[ -n ${codes[i]:-} && -z $2 ]] || kill -s "$1" -- "$2${pids[i]}" 2>/dev/null || true
  done
}
pass_on() {
  signals=$((signals + 1))
  if ((signals > 1)); then
    say 'second signal: killing the processes' && signal_all KILL -
  else
    say "passing SIG$1 on to the processes; once more kills them" && signal_all "$1" ''
  fi
}
clean_up() {
  signal_all KILL -
  if [[ -n $show ]]; then wait "$show" || true; fi
  rm -rf "$pipe_dir"
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap clean_up EXIT

set -m # each process in its own group: Ctrl-C reaches it through pass_on alone, once
(trap '' PIPE && exec "${orphan_guard[@]}" tee "$logs/process_0.log" <"$pipe_dir/process_0") & # outlives a '| head'
show=$!
for ((i = 0; i < num_processes; i++)); do
  mapfile -t settings < <(environment "$i")
  output=$logs/process_$i.log
  if ((i == 0)); then output=$pipe_dir/process_0; fi
  env "${settings[@]}" "${orphan_guard[@]}" "$@" </dev/null >"$output" 2>&1 &
  pids+=("$!")
done
set +m

first_code=0 first_process='' running=$num_processes kill_at=''
while ((running)); do
  sleep 0.1 || true
  failed='' # of those found dead together, the smallest code: the error itself, not the abort (134) that it caused
  for i in "${!pids[@]}"; do
    if [[ -n ${codes[i]:-} ]] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    codes[i]=0 && running=$((running - 1))
    wait "${pids[i]}" 2>/dev/null || codes[i]=$?
    if ((codes[i] && (!${#failed} || codes[i] < codes[failed]))); then failed=$i; fi
  done
  if [[ -n $failed && $first_code -eq 0 ]]; then
    first_code=${codes[failed]} first_process=$failed
    if ((running)); then
      say "process $failed ended with code $first_code; ending the other $running, SIGKILL in $grace s"
      signal_all TERM '' && kill_at=$((SECONDS + grace))
    fi
  fi
  if [[ -n $kill_at ]] && ((running && SECONDS >= kill_at)); then signal_all KILL -; fi
done
if ((first_code)); then
  say "process $first_process failed first, with code $first_code. All codes: ${codes[*]}. Logs: $logs"
  if ((first_process)); then
    say "end of process_$first_process.log:" && tail -n 20 "$logs/process_$first_process.log" >&2
  fi
fi
exit "$first_code"
