#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster, as a JobSet (gke_jobset.yaml). Kubernetes restarts it: when a host is
# taken away, or the run ends with 75 (state saved) or 134 (aborted by JAX, because another host is gone), all
# pods start anew and the run continues. Any other failure ends the JobSet.
#
#   launch/gke_jobset.sh [SETTINGS] create ARGUMENTS    python -m sparsepo_jax.main ARGUMENTS on all hosts of all slices
#   launch/gke_jobset.sh [SETTINGS] restart ARGUMENTS   delete, then create: the same ARGUMENTS continue where it stopped
#   launch/gke_jobset.sh [SETTINGS] logs                follow the log of the first host (--all-hosts: of all)
#   launch/gke_jobset.sh [SETTINGS] status              the JobSet and its pods
#   launch/gke_jobset.sh [SETTINGS] delete
#
# Settings, before the command; the environment variable in brackets gives the default:
#   --name NAME                [GKE_NAME]         of the JobSet
#   --image IMAGE              [GKE_IMAGE]        launch/Dockerfile, built for tpu and pushed
#   --claim CLAIM              [GKE_CLAIM]        PersistentVolumeClaim that all hosts may write (ReadWriteMany):
#                                                 Filestore, or a bucket by Cloud Storage FUSE
#   --mount DIR                [GKE_MOUNT]        where it is mounted; default /mnt/shared. output_dir must lie there
#   --accelerator ACCELERATOR  [GKE_ACCELERATOR]  label of the nodes: tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
#   --topology TOPOLOGY        [GKE_TOPOLOGY]     of a slice: 4x4, or 2x2x2 for v4 and v5p
#   --chips N                  [GKE_CHIPS]        of a host; default 4
#   --slices N                 [GKE_SLICES]       default 1
#   --namespace NAMESPACE      [GKE_NAMESPACE]    default: kubectl's
#   --service-account ACCOUNT  [GKE_SERVICE_ACCOUNT]  of the pods, default "default"; a bucket needs one that may write it
#   --gcsfuse                                     the claim is a bucket (with a hierarchical namespace, because
#                                                 finishing a checkpoint renames its directory)
#   --spot                                        on spot nodes
#   --env NAME=VALUE                              an environment variable of the run; may be repeated
#   --max-restarts N                              default 100
#   --grace SECONDS                               between SIGTERM and SIGKILL; default 120
#   --all-hosts                                   for logs
#   --dry-run                                     print the commands and the manifest, run nothing
#
# Set checkpoint.every_steps: several hosts keep no checkpoints by time.
#
# The cluster needs the JobSet controller (github.com/kubernetes-sigs/jobset, 0.6 or later) and a node pool
# for each slice.
#
# Example:
#   export GKE_NAME=sparsepo GKE_IMAGE=us-docker.pkg.dev/p/r/sparsepo_jax:tpu GKE_CLAIM=shared
#   launch/gke_jobset.sh --accelerator tpu-v5-lite-podslice --topology 4x4 create \
#     --config configs/recipes/ultrafeedback.yaml output_dir=/mnt/shared/uf po.accumulation=1 \
#     compute.mesh.fsdp=16 evaluation.batch_size=16 checkpoint.every_steps=50
# A micro-step (po.batch_size / po.accumulation) and evaluation.batch_size must be multiples of the devices.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=command.sh
. "$(dirname "$0")/command.sh"

name=${GKE_NAME:-} image=${GKE_IMAGE:-} claim=${GKE_CLAIM:-} mount=${GKE_MOUNT:-/mnt/shared} accelerator=${GKE_ACCELERATOR:-} topology=${GKE_TOPOLOGY:-}
# shellcheck disable=SC2034 # read by their names
chips=${GKE_CHIPS:-4} slices=${GKE_SLICES:-1} namespace=${GKE_NAMESPACE:-} service_account=${GKE_SERVICE_ACCOUNT:-default}
gcsfuse=false spot=false all_hosts=false max_restarts=100 grace=120
read_settings "create, restart, logs, status or delete" \
  "name image claim mount accelerator topology chips slices namespace service-account max-restarts grace" "env" "gcsfuse spot all-hosts" "$@"
needed name
place_by namespace

# A JSON string, which YAML reads too. Kubernetes expands $(NAME) in arguments and variables: $$ is its
# dollar.
json() {
  local text=$1 dollars='$$'
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//\$/$dollars}
  printf '"%s"' "$text"
}

json_list() {
  local item list=''
  for item in "$@"; do list+=", $(json "$item")"; done
  printf '[%s]' "${list#, }"
}

# Sets hosts, those of one slice.
count_hosts() {
  local sides side count=1
  [[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "--topology: expected a form such as 4x4 or 2x2x2, got '$topology'"
  IFS=x read -ra sides <<<"$topology"
  for side in "${sides[@]}"; do count=$((count * side)); done
  [[ $chips =~ ^[1-9][0-9]*$ ]] || fail "--chips: expected a number, got '$chips'"
  [ $((count % chips)) = 0 ] || fail "--topology $topology has $count chips, which is no multiple of --chips $chips"
  hosts=$((count / chips))
}

manifest() {
  local text variable run_arguments=("${arguments[@]}") list='' selector=''
  [ $((hosts * slices)) = 1 ] || run_arguments=(compute.distributed=true "${arguments[@]}")
  for variable in PYTHONUNBUFFERED=1 ${env[@]+"${env[@]}"}; do
    list+=", {name: $(json "${variable%%=*}"), value: $(json "${variable#*=}")}"
  done
  ! $spot || selector=', cloud.google.com/gke-spot: "true"'
  text=$(<"$(dirname "$0")/gke_jobset.yaml")
  put() { text=${text//"\${$1}"/"$2"}; }
  put NAME "$(json "$name")"
  put MAX_RESTARTS "$max_restarts"
  put SLICES "$slices"
  put HOSTS "$hosts"
  put GCSFUSE "$(json $gcsfuse)"
  put GRACE "$grace"
  put SERVICE_ACCOUNT "$(json "$service_account")"
  put ACCELERATOR "$(json "$accelerator")"
  put TOPOLOGY "$(json "$topology")"
  put SPOT "$selector"
  put IMAGE "$(json "$image")"
  put CHIPS "$chips"
  put MOUNT "$(json "$mount")"
  put CLAIM "$(json "$claim")"
  put ENV "[${list#, }]"
  put ARGUMENTS "$(json_list "${run_arguments[@]}")" # last, so that what users write is never searched for names
  printf '%s\n' "$text"
}

create() {
  local text
  text=$(manifest)
  if $DRY_RUN; then
    printf "%s <<'END'\n%s\nEND\n" "$(quoted kubectl create ${place[@]+"${place[@]}"} -f -)" "$text"
  else
    run kubectl create ${place[@]+"${place[@]}"} -f - <<<"$text"
  fi
}

delete() {
  run kubectl delete jobset "$name" ${place[@]+"${place[@]}"} --ignore-not-found --cascade=foreground
}

case $command in
  create | restart)
    needed image claim accelerator topology
    [ ${#arguments[@]} -gt 0 ] || fail "$command: expected the run's arguments, such as --config FILE"
    whole_numbers slices max_restarts grace
    count_hosts
    [ "$command" = create ] || delete
    create
    ;;
  logs)
    selector=jobset.sigs.k8s.io/jobset-name=$name
    if $all_hosts; then
      run kubectl logs ${place[@]+"${place[@]}"} --selector="$selector" --container=train --follow --prefix --tail=200 --max-log-requests=1000
    else
      run kubectl logs ${place[@]+"${place[@]}"} --selector="$selector,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0" \
        --container=train --follow --tail=200
    fi
    ;;
  status)
    run kubectl get jobset "$name" ${place[@]+"${place[@]}"}
    run kubectl get pods ${place[@]+"${place[@]}"} --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide
    ;;
  delete) delete ;;
esac
