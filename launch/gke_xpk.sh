#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster that xpk made (github.com/AI-Hypercomputer/xpk, 1.0 or later): what gke_jobset.sh does, submitted and queued by xpk.
#
#   launch/gke_xpk.sh [SETTINGS] create ARGUMENTS    python -m sparsepo_jax.main ARGUMENTS on all hosts of all slices
#   launch/gke_xpk.sh [SETTINGS] restart ARGUMENTS   delete, then create: the same ARGUMENTS continue where it stopped
#   launch/gke_xpk.sh [SETTINGS] status              the cluster's workloads
#   launch/gke_xpk.sh [SETTINGS] delete
#   (its log: launch/gke_jobset.sh --name NAME logs, for xpk makes a JobSet, its container named train as there)
#
# Settings, before the command; the environment variable in brackets gives the default:
#   --name NAME        [GKE_NAME]      of the workload
#   --cluster CLUSTER  [XPK_CLUSTER]
#   --zone ZONE        [TPU_ZONE]
#   --project PROJECT  [TPU_PROJECT]   default: gcloud's
#   --image IMAGE      [GKE_IMAGE]     launch/Dockerfile, built for tpu and pushed
#   --type TYPE        [TPU_TYPE]      such as v5litepod-16, v5p-32, v6e-8
#   --slices N         [GKE_SLICES]    default 1
#   --storage STORAGE  [XPK_STORAGE]   what `xpk storage attach` made of a bucket or Filestore; its mount point holds output_dir
#   --env NAME=VALUE                   an environment variable of the run; may be repeated
#   --max-restarts N                   default 100
#   --grace SECONDS                    between SIGTERM and SIGKILL; default 120
#   --dry-run                          print the commands, run nothing
#
# The workload is started again on exit status 75 (state saved) and, by xpk's own rule, on 42 and 127 to 255.
#
# Example:
#   launch/gke_xpk.sh --name sparsepo --cluster pods --zone us-west4-a --image us-docker.pkg.dev/p/r/sparsepo_jax:tpu --type v5litepod-16 \
#     --storage shared create --config configs/recipes/hh.yaml output_dir=/shared/hh 'stages=[po, eval, report]'
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=command.sh
. "$(dirname "$0")/command.sh"

name=${GKE_NAME:-} cluster=${XPK_CLUSTER:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} image=${GKE_IMAGE:-} type=${TPU_TYPE:-} slices=${GKE_SLICES:-1}
storage=${XPK_STORAGE:-} max_restarts=100 grace=120 options=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run | --help | -h) setting=$1 value='' && shift ;;
    --*=*) setting=${1%%=*} value=${1#*=} && shift ;;
    --*)
      [ $# -gt 1 ] || fail "$1 needs a value"
      setting=$1 value=$2
      shift 2
      ;;
    *) break ;;
  esac
  case $setting in
    --name) name=$value ;;
    --cluster) cluster=$value ;;
    --zone) zone=$value ;;
    --project) project=$value ;;
    --image) image=$value ;;
    --type) type=$value ;;
    --slices) slices=$value ;;
    --storage) storage=$value ;;
    --env)
      [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env: expected NAME=VALUE, got '$value'"
      options+=("--env=$value")
      ;;
    --max-restarts) max_restarts=$value ;;
    --grace) grace=$value ;;
    --dry-run) DRY_RUN=true ;;
    --help | -h) print_header && exit 0 ;;
    *) fail "unknown setting $setting; settings come before the command, the run's arguments after it (--help)" ;;
  esac
done
command=${1:-}
[ -n "$command" ] || fail "expected a command: create, restart, status or delete (--help)"
shift

needed --cluster "$cluster"
needed --zone "$zone"
place=(--cluster="$cluster" --zone="$zone")
[ -z "$project" ] || place+=(--project="$project")

create() {
  # exec: SIGTERM reaches Python itself, not a shell around it.
  run xpk workload create --workload="$name" "${place[@]}" --tpu-type="$type" --num-slices="$slices" --docker-image="$image" --docker-name=train \
    --max-restarts="$max_restarts" --restart-on-exit-codes=75 --termination-grace-period-seconds="$grace" ${options[@]+"${options[@]}"} \
    --command="$(quoted exec python -m sparsepo_jax.main compute.distributed=true "$@")"
}

delete() {
  run xpk workload delete --workload="$name" "${place[@]}" --force
}

case $command in
  create | restart)
    needed --name "$name"
    needed --image "$image"
    needed --type "$type"
    [ $# -gt 0 ] || fail "$command: expected the run's arguments, such as --config FILE"
    # xpk writes the command into one line of a manifest.
    [[ "$*" != *$'\n'* ]] || fail "an argument holds a line break, which xpk cannot pass on"
    [ -z "$storage" ] || options+=("--storage=$storage")
    [ "$command" = create ] || delete
    create "$@"
    ;;
  status) run xpk workload list "${place[@]}" ;;
  delete)
    needed --name "$name"
    delete
    ;;
  *) fail "unknown command '$command': expected create, restart, status or delete (--help)" ;;
esac
