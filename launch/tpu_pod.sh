#!/usr/bin/env bash
# A run on one Cloud TPU slice, of one host or of many, by gcloud from your machine.
#
#   launch/tpu_pod.sh [SETTINGS] create             make the TPU VM; with --queued ask for it as a queued resource and return
#   launch/tpu_pod.sh [SETTINGS] install            this checkout (with untracked files, without ignored ones) and
#                                                   sparsepo_jax[tpu], on all hosts
#   launch/tpu_pod.sh [SETTINGS] run ARGUMENTS      start python -m sparsepo_jax.main ARGUMENTS on all hosts; it keeps
#                                                   running when you disconnect
#   launch/tpu_pod.sh [SETTINGS] logs               follow the log of host 0 (--worker all: of all)
#   launch/tpu_pod.sh [SETTINGS] status             the state of the TPU, and of the run on each host
#   launch/tpu_pod.sh [SETTINGS] stop               SIGTERM to all: the run saves its state and ends
#   launch/tpu_pod.sh [SETTINGS] restart ARGUMENTS  stop, then run: the same ARGUMENTS continue where it stopped
#   launch/tpu_pod.sh [SETTINGS] watch ARGUMENTS    all of this until the run has ended: create what is missing, install,
#                                                   run; after a preemption delete, create, install and run again; run
#                                                   again when it ended with 75 or 134, or a host went down
#   launch/tpu_pod.sh [SETTINGS] delete             delete the TPU VM, or with --queued the queued resource and its VM
#
# Settings, before the command; the environment variable in brackets gives the default:
#   --name NAME         [TPU_NAME]      of the TPU VM and of the queued resource
#   --zone ZONE         [TPU_ZONE]
#   --project PROJECT   [TPU_PROJECT]   default: gcloud's
#   --type TYPE         [TPU_TYPE]      accelerator type, such as v5litepod-16, v5p-32, v6e-8
#   --version VERSION   [TPU_VERSION]   the VM's software: v2-alpha-tpuv5-lite, v2-alpha-tpuv5,
#                                       v2-alpha-tpuv6e; default: what --type needs
#   --share SHARE       [TPU_SHARE]     storage that all hosts share: gs://BUCKET, or HOST:/EXPORT (Filestore, NFS)
#   --mount DIR         [TPU_MOUNT]     where SHARE is mounted; default /mnt/shared
#   --env NAME=VALUE                    an environment variable of the run, such as HF_TOKEN; may be repeated
#   --create-flag FLAG                  a further flag of gcloud's create, such as
#                                       --create-flag=--service-account=A; may be repeated
#   --spot, --queued                    preemptible; as a queued resource
#   --iap                               ssh through Identity-Aware Proxy, for VMs without an external address
#   --worker N|all                      for logs; default 0
#   --poll SECONDS                      for watch: between looks; default 60
#   --max-restarts N                    for watch: runs that may end with 75 or be lost before it gives up; default 100
#   --dry-run                           print the commands, run nothing (watch: those of one round after a preemption)
#
# output_dir must lie on SHARE: all hosts read and write it, and it must outlive the VM. A bucket needs a
# hierarchical namespace, because finishing a checkpoint renames its directory:
#   gcloud storage buckets create gs://BUCKET --location=REGION --uniform-bucket-level-access \
#     --enable-hierarchical-namespace
# Set checkpoint.every_steps: several hosts keep no checkpoints by time.
# Many hosts: run `ssh-add ~/.ssh/google_compute_engine` first, as gcloud asks for.
#
# Example:
#   export TPU_NAME=sparsepo TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16 TPU_SHARE=gs://my-bucket
#   launch/tpu_pod.sh --spot --queued watch \
#     --config configs/recipes/ultrafeedback.yaml output_dir=/mnt/shared/uf po.accumulation=1 \
#     compute.mesh.fsdp=16 evaluation.batch_size=16 checkpoint.every_steps=50
# A micro-step (po.batch_size / po.accumulation) and evaluation.batch_size must be multiples of the devices.
#
# watch ends with the run's exit status: 0 done; 1 or 2 failed; other values: see its log.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=command.sh
. "$(dirname "$0")/command.sh"
ROOT=$(cd "$(dirname "$0")/.." && pwd)

# shellcheck disable=SC2034 # read by their names
name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} type=${TPU_TYPE:-} version=${TPU_VERSION:-}
share=${TPU_SHARE:-} mount=${TPU_MOUNT:-/mnt/shared}
queued=false iap=false spot=false worker=0 poll=60 max_restarts=100 create_flag=()
read_settings "create, install, run, logs, status, stop, restart, watch or delete" \
  "name zone project type version share mount worker poll max-restarts" "env create-flag" "spot queued iap" "$@"
! $spot || create_flag+=(--spot)

case $share in
  '' | gs://?* | ?*:/*) ;;
  *) fail "--share: expected gs://BUCKET or HOST:/EXPORT, got '$share'" ;;
esac
[[ $poll =~ ^[0-9.]+$ ]] || fail "--poll: expected seconds, got '$poll'"
whole_numbers max_restarts
needed name zone
place_by zone project
# IAP's flag is not in gcloud's main track.
ssh=(gcloud compute tpus tpu-vm) ssh_place=("${place[@]}")
if $iap; then
  ssh=(gcloud alpha compute tpus tpu-vm) ssh_place+=(--tunnel-through-iap)
fi

choose_version() {
  needed type
  [ -z "$version" ] || return 0
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v[234]-*) version=tpu-ubuntu2204-base ;;
    *) fail "--version: none known for --type $type; see the table of TPU software versions in Google's documentation" ;;
  esac
}

create() {
  if $queued; then
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${place[@]}" --accelerator-type="$type" --runtime-version="$version" \
      ${create_flag[@]+"${create_flag[@]}"}
  else
    run gcloud compute tpus tpu-vm create "$name" "${place[@]}" --accelerator-type="$type" --version="$version" ${create_flag[@]+"${create_flag[@]}"}
  fi
}

delete() {
  if $queued; then
    run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

# on_workers WORKERS COMMAND: COMMAND is one line for the shell of each host.
on_workers() {
  run "${ssh[@]}" ssh "$name" "${ssh_place[@]}" --worker="$1" --command="$2"
}

# Run here by bash -c, with the checkout and the archive: a tracked file that was deleted is left out.
# shellcheck disable=SC2016 # expanded by the inner shell
pack='cd "$1" && git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d "" file; do [ ! -e "$file" ] || printf "%s\0" "$file"; done | COPYFILE_DISABLE=1 tar --null -T - -czf "$2"'
# Run on each host: of an earlier checkout only runs/ stays.
unpack='mkdir -p sparsepo_jax && find sparsepo_jax -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} + && tar -xzf sparsepo_jax.tar.gz -C sparsepo_jax'

install() {
  local archive=${TMPDIR:-/tmp}/sparsepo_jax-$name.tar.gz shared=()
  [ -z "$share" ] || shared=("$share" "$mount")
  run bash -o pipefail -c "$pack" pack "$ROOT" "$archive" &&
    run "${ssh[@]}" scp "$archive" "$name:sparsepo_jax.tar.gz" "${ssh_place[@]}" --worker=all &&
    run rm "$archive" &&
    on_workers all "$unpack && $(quoted bash sparsepo_jax/launch/tpu_worker.sh install ${shared[@]+"${shared[@]}"})"
}

start_run() {
  on_workers all "$(quoted bash sparsepo_jax/launch/tpu_worker.sh start ${env[@]+"${env[@]}"} -- compute.distributed=true "${arguments[@]}")"
}

stop() {
  on_workers all "$(if_installed stop '')"
}

# run_status [ARGUMENTS]: a line "run: ..." of each host; with ARGUMENTS a run of others is told apart.
run_status() {
  on_workers all "$(if_installed "status${*:+ $(quoted compute.distributed=true "$@")}" '; else echo "run: not installed"')"
}

# A host that was made anew has no script yet.
if_installed() {
  printf 'if [ -e sparsepo_jax/launch/tpu_worker.sh ]; then bash sparsepo_jax/launch/tpu_worker.sh %s%s; fi' "$1" "$2"
}

# State of a resource, such as READY; ABSENT where there is none. Fails, with gcloud's message, where gcloud
# does otherwise.
state_of() {
  if gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="value($2)" 2>"$scratch/errors"; then
    return
  elif grep -q NOT_FOUND "$scratch/errors"; then
    printf ABSENT
  else
    cat "$scratch/errors" >&2
    return 1
  fi
}

# The same, of the VM; or of its queued resource while that has not given one.
tpu_state() {
  local state
  if $queued; then
    state=$(state_of queued-resources state.state) || return
    if [ "$state" != ACTIVE ]; then
      printf '%s' "$state"
      return
    fi
  fi
  state_of tpu-vm state
}

note() {
  printf '%s  %s: %s\n' "$(date '+%F %T')" "$name" "$*" >&2
}

# Waiting for capacity is no failure; any other failure of create will show again.
create_or_wait() {
  if ! create 2>"$scratch/errors"; then
    cat "$scratch/errors" >&2
    grep -qE 'RESOURCE_EXHAUSTED|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|no more capacity|ALREADY_EXISTS' "$scratch/errors" ||
      fail "gcloud could not create $name"
    note "not created; tried again in $poll s"
  fi
}

# What to do about the run, according to the lines "run: ..." of all hosts: wait, wait-for-others, start,
# install, done, other, or fail STATUS.
verdict() {
  local line status='' running=0 over=0 missing=0 ended=0
  while IFS= read -r line; do
    case $line in
      'run: running') running=1 ;;
      'run: other running') echo other && return ;;
      'run: not installed' | 'run: lost') missing=1 ;; # a host that came up again has lost its mount
      'run: exit 0') ended=1 ;;
      'run: exit 75' | 'run: exit 134' | 'run: none') over=1 ;; # 134: JAX aborts a process when another is gone
      'run: exit '*) status=${line#run: exit } ;;
    esac
  done
  if [ -n "$status" ]; then
    echo "fail $status"
  elif [ $missing = 1 ]; then
    echo install
  elif [ $over = 1 ] && [ $running = 1 ]; then
    echo wait-for-others # they learn within minutes that one has ended, and end by themselves, their state saved
  elif [ $over = 1 ]; then
    echo start
  elif [ $running = 1 ]; then
    echo wait
  elif [ $ended = 1 ]; then
    echo 'done'
  else
    return 1
  fi
}

# Starts the run, after installing where $1 is install. Before the checkout is replaced nothing may run out of
# it.
begin() {
  [ $starts -le "$max_restarts" ] || fail "started $starts times; --max-restarts $max_restarts allows no more"
  starts=$((starts + 1))
  stop && { [ "$1" = start ] || install; } && start_run && note "run started (start $starts of this watch)"
}

watch() {
  local state said now before='' failures=0 starts=0 waits=0
  if $DRY_RUN; then
    delete && create && install && start_run && run_status "${arguments[@]}"
    return
  fi
  while :; do
    state=$(tpu_state) || state=UNKNOWN
    [ "$state" = "$before" ] || note "$state"
    before=$state
    case $state in
      UNKNOWN) failures=$((failures + 1)) ;;
      ABSENT) create_or_wait ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        if delete; then before='' && continue; fi
        failures=$((failures + 1))
        ;;
      STOPPED) fail "$name is stopped, which no preemption does; start or delete it, then watch again" ;;
      READY)
        if said=$(run_status "${arguments[@]}" 2>"$scratch/errors") && now=$(verdict <<<"$said"); then
          failures=0
          if [ $starts = 0 ]; then # how an earlier run ended is no news
            case $now in done | fail*) now=start ;; esac
          fi
          [ "$now" = wait-for-others ] || waits=0
          case $now in
            start | install) begin "$now" || failures=$((failures + 1)) ;;
            wait-for-others)
              waits=$((waits + 1))
              [ $waits -lt 10 ] || stop || failures=$((failures + 1))
              ;;
            done) note 'the run is done' && return 0 ;;
            other) fail "a run with other arguments is going on; stop it first, or watch it with its own" ;;
            fail*)
              note "the run ended with ${now#fail }, which no restart mends; see: launch/tpu_pod.sh --name $name --zone $zone --worker all logs"
              stop || note 'the other hosts could not be stopped'
              return "${now#fail }"
              ;;
          esac
        else
          cat "$scratch/errors" >&2
          failures=$((failures + 1))
        fi
        ;;
    esac
    [ $failures -le 30 ] || fail "gcloud failed $failures times; see above"
    sleep "$poll"
  done
}

case $command in
  run | restart | watch) [ ${#arguments[@]} -gt 0 ] || fail "$command: expected the run's arguments, such as --config FILE" ;;
esac
case $command in
  create | watch) choose_version ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
case $command in
  create) create ;;
  install) install ;;
  run) start_run ;;
  logs) on_workers "$worker" 'tail -n 200 -F sparsepo_run/log' ;;
  status)
    ! $queued || run gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)'
    run gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value(state)'
    run_status
    ;;
  stop) stop ;;
  restart) stop && start_run ;;
  watch) watch ;;
  delete) delete ;;
esac
