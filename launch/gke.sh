#!/usr/bin/env bash
# Train on Cloud TPU slices of a GKE cluster: fills in launch/gke.yaml, a JobSet, and hands it to kubectl.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/gke.sh [--dry-run] [arguments of medvlp_jax.main]
Settings, from the environment (defaults in brackets):
  TOPOLOGY [v5e:4x4]  slice as in medvlp_jax.plan: v4, v5e, v5p or v6e, shape, and *2 for two slices
  BUCKET (Cloud Storage bucket, mounted at /bucket)  WORKDIR [/bucket/runs/NAME]  CONFIG [configs/imitate.py]
  REPO (git address; without it IMAGE holds the project in its working folder)  BRANCH [main]  IMAGE [python:3.11]
  NAME [medvlp]  ACCOUNT [default]  SPOT [1]  RESTARTS [100]  CHIPS_PER_HOST [4]
--dry-run prints the command and the manifest instead of applying it.
TEXT
}
fail() { printf 'gke.sh: %s\n\n' "$1" >&2; usage >&2; exit 2; }

: "${TOPOLOGY:=v5e:4x4}" "${BUCKET:=}" "${CONFIG:=configs/imitate.py}" "${REPO:=}" "${BRANCH:=main}" "${NAME:=medvlp}"
: "${IMAGE:=python:3.11}" "${ACCOUNT:=default}" "${SPOT:=1}" "${RESTARTS:=100}" "${CHIPS_PER_HOST:=4}"
: "${WORKDIR:=/bucket/runs/$NAME}"
dry_run=0
case ${1:-} in -h | --help) usage && exit 0 ;; --dry-run) dry_run=1 && shift ;; esac

[[ $TOPOLOGY =~ ^(v4|v5e|v5p|v6e):([1-9][0-9]*(x[1-9][0-9]*){1,2})(\*([1-9][0-9]*))?$ ]] ||
  fail "TOPOLOGY='$TOPOLOGY' is no slice. Write one like v5e:4x4, v5p:2x2x4 or v5e:16x16*2."
declare -A accelerators=([v4]=tpu-v4-podslice [v5e]=tpu-v5-lite-podslice [v5p]=tpu-v5p-slice [v6e]=tpu-v6e-slice)
declare -A filled=([NAME]=$NAME [RESTARTS]=$RESTARTS [CHIPS_PER_HOST]=$CHIPS_PER_HOST [BUCKET]=$BUCKET)
filled[ACCELERATOR]=${accelerators[${BASH_REMATCH[1]}]} filled[SHAPE]=${BASH_REMATCH[2]}
filled[SLICES]=${BASH_REMATCH[5]:-1} filled[SPOT_NODES]='cloud.google.com/gke-spot: "true"'
((SPOT)) || filled[SPOT_NODES]='# on-demand nodes'
[[ $RESTARTS =~ ^[0-9]+$ ]] || fail "RESTARTS='$RESTARTS' must be a whole number."
[[ $SPOT =~ ^[01]$ ]] || fail "SPOT='$SPOT' must be 1 or 0."
[[ $CHIPS_PER_HOST =~ ^[148]$ ]] || fail "CHIPS_PER_HOST='$CHIPS_PER_HOST' must be 1, 4 or 8."
chips=$((${filled[SHAPE]//x/*}))
((chips % CHIPS_PER_HOST == 0)) || fail "$chips chips of $TOPOLOGY do not split into hosts of $CHIPS_PER_HOST."
filled[HOSTS]=$((chips / CHIPS_PER_HOST))
[[ $NAME =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || fail "NAME='$NAME' must be lower-case letters, digits and dashes."
[[ $BUCKET =~ ^[a-z0-9][a-z0-9._-]+$ ]] || fail "BUCKET='$BUCKET' must be the name of a bucket, without gs://."
[[ -n $REPO || $IMAGE != python:* ]] ||
  fail 'REPO is not set. Example: REPO=https://github.com/you/medvlp_jax.git, or an IMAGE with the project.'

quote() { # a word as YAML reads it between double quotes
  [[ $1 != *$'\n'* ]] || fail 'arguments and settings must be single lines.'
  local word=${1//\\/\\\\}
  printf '"%s"' "${word//\"/\\\"}"
}
for name in IMAGE REPO BRANCH ACCOUNT; do filled[$name]=$(quote "${!name}"); done
lines='' reference=\$\(
for word in --config "$CONFIG" --workdir "$WORKDIR" "$@"; do # Kubernetes would expand $(NAME); doubled it stays
  word=$(quote "${word//"$reference"/"\$$reference"}")
  lines+="                    - $word"$'\n'
done

manifest=$(<"$(dirname "${BASH_SOURCE[0]}")/gke.yaml")
for name in "${!filled[@]}"; do manifest=${manifest//"@$name@"/"${filled[$name]}"}; done
manifest=${manifest//@ARGUMENTS@/"${lines%$'\n'}"} # last: what a user types is not searched for such words
if ((dry_run)); then printf '# kubectl apply --filename -\n%s\n' "$manifest" && exit 0; fi
command -v kubectl >/dev/null || fail "kubectl is not installed; 'gcloud components install kubectl' brings it."
kubectl apply --filename - <<<"$manifest"
