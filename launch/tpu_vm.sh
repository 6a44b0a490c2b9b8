#!/usr/bin/env bash
# Create a Cloud TPU slice, install the project on every host, train on all of them, look, delete.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_vm.sh [--dry-run] [--queued] SUBCOMMAND [arguments of medvlp_jax.main]
  create    make the slice (--queued: ask for it in the queue; it comes when there is capacity)
  install   clone REPO at BRANCH and install it with the pinned versions, on all hosts
  run       start training on all hosts, in the background: run --config.total_steps=1000
  status    state of the slice, and of the training on each host
  log       follow the training log of host WORKER
  stop      send SIGTERM to the training on all hosts and wait for its end
  watch     queued slices: create, install, run; after a preemption the same again, until training has ended
  delete    give the slice back (--queued when it was created so); WORKDIR stays
Settings, from the environment (defaults in brackets):
  NAME [medvlp]  ZONE [us-central1-a]  PROJECT [that of gcloud]  TYPE [v5litepod-16]  RUNTIME [v2-alpha-tpuv5-lite]
  SPOT [1]  REPO (git address)  BRANCH [main]  PYTHON [3.11]  CONFIG [configs/imitate.py]
  WORKDIR (gs://bucket/folder)  WORKER [0]  POLL [60 seconds]  RESTARTS [3]
--dry-run prints the commands instead of running them.
TEXT
}
fail() { printf 'tpu_vm.sh: %s\n\n' "$1" >&2; usage >&2; exit 2; }
say() { printf 'tpu_vm.sh: %s\n' "$1" >&2; }
need() { [[ -n ${!1} ]] || fail "$1 is not set. Example: $1=$2 launch/tpu_vm.sh $subcommand"; }

: "${NAME:=medvlp}" "${ZONE:=us-central1-a}" "${PROJECT:=}" "${TYPE:=v5litepod-16}" "${RUNTIME:=v2-alpha-tpuv5-lite}"
: "${SPOT:=1}" "${REPO:=}" "${BRANCH:=main}" "${PYTHON:=3.11}" "${CONFIG:=configs/imitate.py}" "${WORKDIR:=}"
: "${WORKER:=0}" "${POLL:=60}" "${RESTARTS:=3}"

dry_run=0 queued=0 subcommand='' arguments=()
while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    --queued) queued=1 ;;
    -h | --help) usage && exit 0 ;;
    *) if [[ -z $subcommand ]]; then subcommand=$1; elif [[ $1 != -- ]]; then arguments+=("$1"); fi ;;
  esac
  shift
done
case $subcommand in
  create | install | status | log | stop | delete)
    ((${#arguments[@]} == 0)) || fail "'$subcommand' takes no further arguments, got '${arguments[0]}'." ;;
  run | watch) need WORKDIR gs://bucket/run ;;
  '') fail 'the subcommand is missing.' ;;
  *) fail "unknown subcommand '$subcommand'." ;;
esac
case $subcommand in install | watch) need REPO https://github.com/you/medvlp_jax.git ;; esac
case $WORKDIR in '' | gs://*) ;; *) say "WORKDIR=$WORKDIR is no gs:// address; all hosts must share that disk" ;; esac
say "NAME=$NAME ZONE=$ZONE PROJECT=${PROJECT:-(that of gcloud)} TYPE=$TYPE RUNTIME=$RUNTIME SPOT=$SPOT"
say "REPO=${REPO:-(not set)} BRANCH=$BRANCH PYTHON=$PYTHON CONFIG=$CONFIG WORKDIR=${WORKDIR:-(not set)}"

quote() { # words as a shell reads them
  local word text=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    text+="$word "
  done
  printf '%s' "${text% }"
}
tpus() { # gcloud compute tpus GROUP VERB NAME ...
  local call=(gcloud compute tpus "$1" "$2" "$NAME" "--zone=$ZONE")
  [[ -z $PROJECT ]] || call+=("--project=$PROJECT")
  call+=("${@:3}")
  if ((dry_run)); then quote "${call[@]}" && echo; else "${call[@]}"; fi
}
on_hosts() { tpus tpu-vm ssh "--worker=$1" --quiet "--command=$2"; }
queue_state() { tpus queued-resources describe '--format=value(state.state)'; }
host_states() {
  on_hosts all 'if [ -d medvlp_jax ]; then medvlp_jax/launch/host.sh state; else echo training=none; fi'
}

create() {
  local tier=()
  [[ $SPOT != 1 ]] || tier=(--spot)
  if ((queued)); then
    tpus queued-resources create "--node-id=$NAME" "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" "${tier[@]}"
  else
    tpus tpu-vm create "--accelerator-type=$TYPE" "--version=$RUNTIME" "${tier[@]}"
  fi
}
delete() { if ((queued)); then tpus queued-resources delete --force --quiet; else tpus tpu-vm delete --quiet; fi; }
install() { # uv brings a finished Python without root; the one of the system may be too old
  on_hosts all "set -e; [ -d medvlp_jax ] || git clone --quiet $(quote "$REPO") medvlp_jax; cd medvlp_jax;\
 git fetch --quiet origin $(quote "$BRANCH"); git checkout --quiet --detach FETCH_HEAD;\
 python3 -m pip install --quiet --user uv;\
 [ -d .venv ] || python3 -m uv venv --quiet --seed --python $(quote "$PYTHON") .venv;\
 .venv/bin/pip install --quiet -c constraints.txt -e '.[tpu]'; git log -1 --format=%h"
}
run() { # one process per host; JAX finds the other hosts of the slice by itself
  on_hosts all "medvlp_jax/launch/host.sh start $(quote --config "$CONFIG" --workdir "$WORKDIR" "${arguments[@]}")"
}
stop() { on_hosts all 'medvlp_jax/launch/host.sh stop'; }
log() { on_hosts "$WORKER" 'tail -n 50 -F medvlp_run/log'; }
status() {
  if ((queued)); then queue_state; else tpus tpu-vm describe '--format=value(state,health)'; fi
  host_states
}

recreate() { delete && create; }
begin() { install && run; }
restart() { stop && install && run; } # all hosts together, from the last checkpoint
attempt() { say "$1" && { "${@:2}" || say "that failed; trying again in $POLL seconds"; }; }
watch() { # training resumes by itself from the same WORKDIR, so after a preemption it is only started again
  queued=1
  if ((dry_run)); then
    echo '# request unknown:' && create
    echo '# request SUSPENDED or FAILED:' && recreate
    echo '# request ACTIVE, nothing started yet:' && begin
    echo "# request ACTIVE, a host has failed ($RESTARTS times at most):" && restart
    echo "# every $POLL seconds:" && queue_state && host_states
    return
  fi
  local state hosts errors restarts=0 misses=0 ended=0
  errors=$(mktemp)
  while true; do
    state=$(queue_state 2>"$errors") || { grep -q NOT_FOUND "$errors" && state=NOT_FOUND; } || state=''
    case $state in
      '') misses=$((misses + 1)) && say "the queue does not answer ($misses of 10): $(tail -n 1 "$errors")"
        ((misses < 10)) || return 1 ;;
      NOT_FOUND) attempt 'creating' create ;;
      SUSPENDED | FAILED) restarts=0 && attempt "request $state: deleting, creating anew" recreate ;;
      ACTIVE)
        hosts=$(host_states 2>"$errors" | sed -n 's/^training=//p' | sort -u | tr '\n' ' ') || hosts=''
        case $hosts in
          '0 ') # seen twice, so that a run ended by the notice of a preemption is not taken for complete
            ended=$((ended + 1))
            if ((ended > 1)); then say "training has ended; 'tpu_vm.sh --queued delete' ends the cost" && return; fi ;;
          'running ') ;;
          '') say "hosts do not answer: $(tail -n 1 "$errors")" ;;
          'none ') attempt 'installing, starting' begin ;;
          '75 ') attempt 'stopped with its checkpoint saved; starting again' restart ;;
          '2 ') say "training named an error that a restart does not help: 'tpu_vm.sh log'" && return 1 ;;
          *) restarts=$((restarts + 1))
            ((restarts <= RESTARTS)) || { say "hosts: $hosts; gave up after $RESTARTS restarts" && return 1; }
            attempt "hosts: $hosts; restart $restarts of $RESTARTS" restart ;;
        esac ;;
      *) say "request $state" ;;
    esac
    [[ $state == ACTIVE && $hosts == '0 ' ]] || ended=0
    [[ -z $state ]] || misses=0
    sleep "$POLL"
  done
}
"$subcommand"
