#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster that xpk made (github.com/AI-Hypercomputer/xpk, 1.0 or later): what
# gke_jobset.sh does, submitted and queued by xpk.
#
#   launch/gke_xpk.sh [SETTINGS] create ARGUMENTS    python -m sparsepo_jax.main ARGUMENTS on all hosts of all slices
#   launch/gke_xpk.sh [SETTINGS] restart ARGUMENTS   delete, then create: the same ARGUMENTS continue where it stopped
#   launch/gke_xpk.sh [SETTINGS] status              the cluster's workloads
#   launch/gke_xpk.sh [SETTINGS] delete
#   (its log: launch/gke_jobset.sh --name NAME logs; xpk makes a JobSet, too, whose container is named train)
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
# Set checkpoint.every_steps: several hosts keep no checkpoints by time.
#
# The workload is started again on exit status 75 (state saved) and, by xpk's own rule, on 42 and 127 to 255.
#
# Example:
#   launch/gke_xpk.sh --name sparsepo --cluster pods --zone us-west4-a --type v5litepod-16 \
#     --image us-docker.pkg.dev/p/r/sparsepo_jax:tpu --storage shared create \
#     --config configs/recipes/ultrafeedback.yaml output_dir=/shared/uf po.accumulation=1 \
#     compute.mesh.fsdp=16 evaluation.batch_size=16 checkpoint.every_steps=50
# A micro-step (po.batch_size / po.accumulation) and evaluation.batch_size must be multiples of the devices.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=command.sh
. "$(dirname "$0")/command.sh"

# shellcheck disable=SC2034 # read by their names
name=${GKE_NAME:-} cluster=${XPK_CLUSTER:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} image=${GKE_IMAGE:-} type=${TPU_TYPE:-} slices=${GKE_SLICES:-1}
storage=${XPK_STORAGE:-} max_restarts=100 grace=120 options=()
read_settings "create, restart, status or delete" "name cluster zone project image type slices storage max-restarts grace" "env" "" "$@"
needed cluster zone
place_by cluster zone project

create() {
  # exec: SIGTERM reaches Python itself, not a shell around it.
  run xpk workload create --workload="$name" "${place[@]}" --tpu-type="$type" --num-slices="$slices" --docker-image="$image" --docker-name=train \
    --max-restarts="$max_restarts" --restart-on-exit-codes=75 --termination-grace-period-seconds="$grace" ${options[@]+"${options[@]}"} \
    --command="$(quoted exec python -m sparsepo_jax.main compute.distributed=true "${arguments[@]}")"
}

delete() {
  run xpk workload delete --workload="$name" "${place[@]}" --force
}

case $command in
  create | restart)
    needed name image type
    whole_numbers slices max_restarts grace
    [ ${#arguments[@]} -gt 0 ] || fail "$command: expected the run's arguments, such as --config FILE"
    # xpk writes the command into one line of a manifest.
    [[ "${arguments[*]}" != *$'\n'* ]] || fail "an argument holds a line break, which xpk cannot pass on"
    [ -z "$storage" ] || options+=("--storage=$storage")
    for variable in ${env[@]+"${env[@]}"}; do options+=("--env=$variable"); done
    [ "$command" = create ] || delete
    create
    ;;
  status) run xpk workload list "${place[@]}" ;;
  delete)
    needed name
    delete
    ;;
esac
