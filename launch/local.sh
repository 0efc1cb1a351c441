#!/usr/bin/env bash
# Runs the main job as several processes on this machine.
#
#   launch/local.sh [--processes=N] [OPTIONS] -- --config=FILE --workdir=DIR [ARGUMENTS]
#
#   --processes=N      how many                               PDREC_PROCESSES, or 2
#   --device=cpu|gpu   gpu gives each process one of its own  PDREC_DEVICE, or cpu
#   --devices=N        devices a process, with cpu            PDREC_DEVICES, or 1
#   --port=PORT        of the coordinator                     PDREC_PORT, or a free one
#   --logs=DIR         output of processes 1, 2, ..           PDREC_LOGS, or WORKDIR-processes
#   --grace=SECONDS    after a failure, until SIGKILL         PDREC_GRACE, or 30
#   --dry-run          print what would run
#
# Process 0 writes here. If one process ends with an error, the others are told to end too, and
# ended after the grace if they still wait for it; its status is this script's. SIGTERM and SIGINT
# are passed on, so that the job saves its state.
# PYTHON names the interpreter, or else .venv/bin/python is taken where there is one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

processes=${PDREC_PROCESSES:-2} device=${PDREC_DEVICE:-cpu} devices=${PDREC_DEVICES:-}
port=${PDREC_PORT:-} logs=${PDREC_LOGS:-} grace=${PDREC_GRACE:-30}
python=${PYTHON:-}
while (($#)); do
  case $1 in
    --processes=*) processes=$(value_of "$1") ;;
    --device=*) device=$(value_of "$1") ;;
    --devices=*) devices=$(value_of "$1") ;;
    --port=*) port=$(value_of "$1") ;;
    --logs=*) logs=$(value_of "$1") ;;
    --grace=*) grace=$(value_of "$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  shift
done
require_number --processes "$processes"
[[ $device != gpu || -z $devices ]] || fail "--devices: for --device=cpu, a process has one GPU"
devices=${devices:-1}
require_number --devices "$devices"
require_number --grace "$grace"
require_job "$@"
if [[ -z $python ]]; then
  python=python3
  [[ -x $here/../.venv/bin/python ]] && python=$here/../.venv/bin/python
fi
if [[ -z $port ]]; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
require_port --port "$port"
if [[ -z $logs ]]; then
  for argument in "$@"; do
    # Beside the workdir, which the job wants empty.
    [[ $argument == --workdir=* ]] && logs=${argument#*=} && logs=${logs%/}-processes
  done
fi

# The words that start process $1, in `command`.
compose() {
  command=(env)
  case $device in
    cpu)
      # Appended: who sets flags of XLA keeps them.
      command+=(JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
        "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices")
      ;;
    gpu) command+=(JAX_PLATFORMS=cuda "CUDA_VISIBLE_DEVICES=$1") ;;
    *) fail "--device: cpu or gpu is expected, got '$device'" ;;
  esac
  command+=("$python" -m pdrec_jax.main "--coordinator=localhost:$port"
    "--num_processes=$processes" "--process_id=$1" "${@:2}")
}

compose 0 "$@"
if $dry_run; then
  for ((process = 0; process < processes; process++)); do
    compose "$process" "$@"
    quoted "${command[@]}"
  done
  exit
fi

mkdir -p "$logs"
running=()
# One of them may have ended already.
trap 'kill -TERM "${running[@]}" 2>/dev/null || true' TERM INT
for ((process = 0; process < processes; process++)); do
  compose "$process" "$@"
  if ((process)); then
    "${command[@]}" </dev/null >"$logs/process-$process.log" 2>&1 &
  else
    "${command[@]}" </dev/null &
  fi
  running+=($!)
done

# Ends processes after the grace.
end_later() {
  trap 'kill "$!"; exit' TERM
  sleep "$grace" &
  wait "$!"
  kill -KILL "$@"
}

status=0
later=
left=("${running[@]}")
while ((${#left[@]})); do
  # Not `wait -n`: it tells of one where several end together, and forgets one that was killed
  # before it asked. A signal to the whole group ends the sleep too, which is no news.
  { sleep 0.2 || true; } 2>/dev/null
  mapfile -t alive < <(jobs -rp)
  ended=() still=()
  for process in "${left[@]}"; do
    if [[ " ${alive[*]} " == *" $process "* ]]; then still+=("$process"); else ended+=("$process"); fi
  done
  left=("${still[@]}")
  for process in "${ended[@]}"; do
    one=0
    wait "$process" || one=$?
    if ((!one || status)); then continue; fi
    status=$one
    ((${#left[@]})) || continue
    kill -TERM "${left[@]}" 2>/dev/null || true
    end_later "${left[@]}" </dev/null >/dev/null 2>&1 &
    later=$!
    # Its end is no news to the shell.
    disown "$later"
  done
done
[[ -z $later ]] || kill "$later" 2>/dev/null || true
if ((status)); then
  echo "a process ended with status $status; the others' output is in $logs" >&2
fi
exit "$status"
