#!/usr/bin/env bash
# What launch/tpu_pod.sh does on each host of a TPU slice, from the checkout that it copied there. Run it by
# hand only to look.
#
#   tpu_worker.sh install [SHARE MOUNT]     Python 3.11 or 3.12, sparsepo_jax[tpu]; SHARE (gs://BUCKET or HOST:/EXPORT) mounted at MOUNT
#   tpu_worker.sh start [NAME=VALUE ...] -- ARGUMENTS     python -m sparsepo_jax.main ARGUMENTS, detached, its log in ~/sparsepo_run/log
#   tpu_worker.sh status [ARGUMENTS]     one line: "run: none", "run: running", "run: exit STATUS", or "run: lost" (the host went down under it);
#                           of a run with other ARGUMENTS: "run: other running" or "run: none"
#   tpu_worker.sh stop [SECONDS]     SIGTERM, and SIGKILL if it has not ended after SECONDS (default 300)
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
STATE=$HOME/sparsepo_run
VENV=$HOME/sparsepo_venv

install_python() {
  local python
  for python in python3.12 python3.11; do
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      "$python" -m venv "$VENV"
      return
    fi
  done
  python3 -m pip install --user --quiet uv # images of TPU VMs have Python 3.10
  python3 -m uv venv --quiet --seed --python 3.12 "$VENV"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get update -qq
  sudo apt-get install -qq -y gcsfuse
}

mount_share() {
  local share=$1 mount=$2
  if mountpoint -q "$mount"; then return; fi
  sudo mkdir -p "$mount"
  case $share in
    gs://*)
      sudo chown "$(id -u):$(id -g)" "$mount"
      command -v gcsfuse >/dev/null || install_gcsfuse
      # No caching of file metadata (with NFS: for a second): each host must see what another has just
      # written.
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "${share#gs://}" "$mount"
      ;;
    *:/*)
      command -v mount.nfs >/dev/null || sudo apt-get install -qq -y nfs-common
      sudo mount -t nfs -o actimeo=1 "$share" "$mount"
      ;;
  esac
}

run_status() {
  local pid boot
  if [ ! -e "$STATE/pid" ]; then
    echo none
  elif [ -e "$STATE/exit" ]; then
    echo "exit $(<"$STATE/exit")"
  else
    read -r pid boot <"$STATE/pid"
    if [ "$boot" = "$(boot_id)" ] && kill -0 "$pid" 2>/dev/null; then echo running; else echo lost; fi
  fi
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  install)
    [ $# -eq 0 ] || mount_share "$@"
    [ -x "$VENV/bin/python" ] || install_python
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "${ROOT}[tpu]"
    ;;
  start)
    [ "$(run_status)" != running ] || { echo "a run is going on on $(hostname); stop it first" >&2; exit 1; }
    variables=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
      variables+=("$1")
      shift
    done
    shift
    mkdir -p "$STATE"
    rm -f "$STATE/exit" "$STATE/pid"
    printf '%s\0' "$@" >"$STATE/arguments"
    cd "$ROOT"
    # A session of its own outlives ssh. The pid is the program's, so that SIGTERM reaches it and its exit
    # status is kept.
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid bash -c 'state=$1 boot=$2; shift 2; "$@" & echo "$! $boot" >"$state/pid.new"; mv "$state/pid.new" "$state/pid"
      status=0; wait "$!" || status=$?; echo "$status" >"$state/exit"' start "$STATE" "$(boot_id)" \
      env PYTHONUNBUFFERED=1 ${variables[@]+"${variables[@]}"} "$VENV/bin/python" -m sparsepo_jax.main "$@" </dev/null >>"$STATE/log" 2>&1 &
    until [ -e "$STATE/pid" ]; do sleep 0.1; done
    ;;
  status)
    status=$(run_status)
    if [ $# -gt 0 ] && ! printf '%s\0' "$@" | cmp -s - "$STATE/arguments"; then
      if [ "$status" = running ]; then status='other running'; else status=none; fi
    fi
    echo "run: $status"
    ;;
  stop)
    [ "$(run_status)" = running ] || exit 0
    read -r pid _ <"$STATE/pid"
    kill -TERM "$pid" || true # it may end by itself just now
    for ((tenths = 0; tenths < 10 * ${1:-300}; tenths++)); do
      [ "$(run_status)" = running ] || exit 0
      sleep 0.1
    done
    echo "killed: it had not ended ${1:-300} s after SIGTERM" >&2
    kill -KILL "$pid" || true
    while [ "$(run_status)" = running ]; do sleep 0.1; done
    ;;
  *)
    echo "tpu_worker.sh: expected install, start, status or stop, got '$command'" >&2
    exit 2
    ;;
esac
