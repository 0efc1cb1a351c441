#!/usr/bin/env bash
# Runs the main job on a Cloud TPU pod slice, one process a host.
#
#   launch/tpu.sh create                 ask for the slice, and wait until it is there
#   launch/tpu.sh setup                  put this commit and its environment on all hosts
#   launch/tpu.sh run -- ARGUMENTS       start the job on all hosts, in the background
#   launch/tpu.sh logs                   follow host 0's output until the job ends
#   launch/tpu.sh status                 state of the slice, and of the job on every host
#   launch/tpu.sh stop                   SIGTERM to the job: it saves its state and ends
#   launch/tpu.sh delete                 give the slice back
#   launch/tpu.sh keep -- ARGUMENTS      all of it: create, setup, run, wait; after a preemption
#                                        again from the start; delete once the job is done
#
#   --name=NAME        of the slice                           PDREC_NAME, or pdrec
#   --zone=ZONE                                               PDREC_ZONE
#   --project=PROJECT                                         PDREC_PROJECT, or gcloud's own
#   --type=TYPE        for instance v5litepod-16              PDREC_TPU_TYPE
#   --version=VERSION  runtime of the hosts                   PDREC_TPU_VERSION, or that of TYPE
#   --spot             cheaper, and can be preempted          PDREC_SPOT=1
#   --direct           tpu-vm create, not a queued resource   PDREC_DIRECT=1
#   --repository=URL   clone this, not an archive of HEAD     PDREC_REPOSITORY
#   --commit=COMMIT    what is installed                      PDREC_COMMIT, or HEAD
#   --prepare=COMMAND  first on every host, to mount storage  PDREC_PREPARE
#   --poll=SECONDS     between looks at the slice             PDREC_POLL, or 60
#   --dry-run          print what would run
#
# ARGUMENTS are those of pdrec_jax.main; --workdir must be on storage that all hosts mount.
# docs/launching.md has the traps.

# Where quotes are single, a host is to read the text.
# shellcheck disable=SC2016
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

name=${PDREC_NAME:-pdrec} zone=${PDREC_ZONE:-} project=${PDREC_PROJECT:-}
type=${PDREC_TPU_TYPE:-} version=${PDREC_TPU_VERSION:-} spot=${PDREC_SPOT:-} direct=${PDREC_DIRECT:-}
repository=${PDREC_REPOSITORY:-} commit=${PDREC_COMMIT:-HEAD} prepare=${PDREC_PREPARE:-}
poll=${PDREC_POLL:-60}
case ${1:-} in
  create | setup | run | logs | status | stop | delete | keep) action=$1 ;;
  --help | -h) usage && exit ;;
  *) fail "create, setup, run, logs, status, stop, delete or keep is expected, got '${1:-}'" ;;
esac
shift
while (($#)); do
  case $1 in
    --name=*) name=$(value_of "$1") ;;
    --zone=*) zone=$(value_of "$1") ;;
    --project=*) project=$(value_of "$1") ;;
    --type=*) type=$(value_of "$1") ;;
    --version=*) version=$(value_of "$1") ;;
    --spot) spot=1 ;;
    --direct) direct=1 ;;
    --repository=*) repository=$(value_of "$1") ;;
    --commit=*) commit=$(value_of "$1") ;;
    --prepare=*) prepare=$(value_of "$1") ;;
    --poll=*) poll=$(value_of "$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  shift
done
require_name --name "$name"
require_number --poll "$poll"
[[ -n $zone ]] || fail "--zone: a zone with TPUs is expected, for instance us-west4-a"
case $action in
  create | keep)
    case $type in
      v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
      v5p-*) version=${version:-v2-alpha-tpuv5} ;;
      v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
      v4-*) version=${version:-tpu-ubuntu2204-base} ;;
      *) fail "--type: v4-N, v5litepod-N, v5p-N or v6e-N is expected, got '$type'" ;;
    esac
    require_number --type "${type#*-}"
    ;;
esac
case $action in run | keep) require_job "$@" ;; esac

place=("--zone=$zone")
[[ -z $project ]] || place+=("--project=$project")
tpus=(gcloud compute tpus)

on_all_hosts() {
  run "${tpus[@]}" tpu-vm ssh "$name" "${place[@]}" --worker=all "--command=$1"
}

# `made` tells whether it is this call that asked for the slice.
create() {
  local asked=("--accelerator-type=$type")
  [[ -z $spot ]] || asked+=(--spot)
  local state=GONE
  made=false
  $dry_run || state=$(slice_state)
  if [[ $state == UNREACHABLE ]]; then
    return 75 # as sysexits has it: try again later
  elif [[ $state != GONE ]]; then
    echo "$name is there already" >&2
  elif [[ -n $direct ]]; then
    # There may be no room for it now.
    run "${tpus[@]}" tpu-vm create "$name" "${place[@]}" "${asked[@]}" "--version=$version" ||
      return 1
    made=true
  else
    run "${tpus[@]}" queued-resources create "$name" "${place[@]}" "${asked[@]}" \
      "--runtime-version=$version" "--node-id=$name" || return 2
    made=true
  fi
  wait_until_ready
}

describe=("${tpus[@]}" queued-resources describe "$name" "${place[@]}" '--format=value(state.state)')
[[ -z $direct ]] ||
  describe=("${tpus[@]}" tpu-vm describe "$name" "${place[@]}" '--format=value(state)')

# The slice's state in capitals; GONE where there is none, UNREACHABLE where gcloud does not know.
slice_state() {
  local found errors
  errors=$(mktemp)
  if found=$("${describe[@]}" 2>"$errors"); then
    echo "${found:-GONE}"
  elif grep -qiE 'not[ _]found' "$errors"; then
    echo GONE
  else
    tail -n 1 "$errors" >&2
    echo UNREACHABLE
  fi
  rm -f "$errors"
}

wait_until_ready() {
  local state
  $dry_run && return
  while state=$(slice_state); do
    case $state in
      READY | ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED | GONE) return 1 ;;
    esac
    echo "$(date +%H:%M) $name: $state" >&2
    sleep "$poll"
  done
}

setup() {
  local archive steps='set -eu'
  [[ -z $prepare ]] || steps+="; $prepare"
  steps+='; rm -rf pdrec && mkdir pdrec'
  if [[ -n $repository ]]; then
    steps+="; git clone --quiet $(quoted "$repository") pdrec"
    steps+="; git -C pdrec checkout --quiet $(quoted "$commit")"
  else
    archive=${TMPDIR:-/tmp}/$name.tar.gz
    run git -C "$here/.." archive --format=tar.gz "--output=$archive" "$commit" || return 2
    run "${tpus[@]}" tpu-vm scp "$archive" "$name:pdrec.tar.gz" "${place[@]}" --worker=all ||
      return 1
    steps+='; tar -xzf pdrec.tar.gz -C pdrec'
  fi
  # The hosts' own Python is too old, and uv brings one.
  steps+='; cd pdrec; PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv'
  steps+='; python3 -m uv venv --quiet --python=3.12 .venv'
  steps+="; python3 -m uv pip install --quiet --python=.venv/bin/python --editable '.[tpu]'"
  on_all_hosts "$steps" || return 1
}

# Of a host, from the metadata that Cloud TPU gives it: its number, and the addresses of all, of which
# the first coordinates. Nothing in the environment of a host says so.
readonly find_place='at=http://metadata.google.internal/computeMetadata/v1/instance/attributes;
 meta() { curl -sf --max-time 60 -H Metadata-Flavor:Google "$at/$1"; };
 all=$(meta worker-network-endpoints); first=${all%%,*};
 number=$(echo "$all" | tr , "\n" | wc -l); own=$(meta agent-worker-number);
 [ "$all" ] && [ "$own" ] || { echo "error: no answer of the metadata server"; exit 1; };'

# The job outlives the connection. Its status goes to a file, which stands for its end. The shell that
# finds the place and starts it is noted too: it is there before the job is, and ends after it. It is
# bash, as sh does not read all that `quoted` writes.
start() {
  local main='.venv/bin/python -m pdrec_jax.main --coordinator="${first##*:}:8476"'
  main+=" --num_processes=\"\$number\" --process_id=\"\$own\" $(quoted "$@")"
  main="${find_place//$'\n'/} $main & echo \$! >pid; wait \$!; echo \$? >status"
  main="nohup bash -c $(quoted "$main") >log 2>&1 </dev/null & echo \$! >starter"
  on_all_hosts "cd pdrec || exit; rm -f status pid starter; $main"
}

# Of a host: running, the status that the job ended with, lost where there is neither, or none where
# no job was started. Status is looked for last, so that a job that ends meanwhile is not lost.
job_state='cd pdrec 2>/dev/null || { echo none; exit 0; }; now=none;
 for one in pid starter; do
 if kill -0 "$(cat $one)"; then now=running; elif [ -e $one ] && [ $now = none ]; then now=lost; fi;
 done 2>/dev/null;
 if [ -e status ]; then cat status; else echo $now; fi'
job_state=${job_state//$'\n'/}

# What the hosts say of the job, each answer once; unreachable unless all of them answer: gcloud fails
# where a single one does not.
job_states() {
  local found
  if found=$(on_all_hosts "$job_state" 2>/dev/null) && [[ -n $found ]]; then
    sort -u <<<"$found"
  else
    echo unreachable
  fi
}

# Waits for the job; returns 0 once it is done, 1 if it or the slice is gone, 2 if it failed.
watch() {
  local states state
  if $dry_run; then
    on_all_hosts "$job_state"
    return 0
  fi
  while :; do
    state=$(slice_state)
    # What gcloud does not know is no reason to give the slice back.
    case $state in READY | ACTIVE | UNREACHABLE) ;; *)
      echo "$(date +%H:%M) $name: $state" >&2
      return 1
      ;;
    esac
    states=$(job_states)
    case $states in
      0) return 0 ;;
      # A job that was told to end resumes; one with an error would only fail again.
      *143* | *lost* | *none*) return 1 ;;
      *running* | unreachable) ;;
      *)
        echo "error: the job ended with status ${states//$'\n'/, }; its output is in pdrec/log" >&2
        return 2
        ;;
    esac
    sleep "$poll"
  done
}

remove() {
  if [[ -n $direct ]]; then
    run "${tpus[@]}" tpu-vm delete "$name" "${place[@]}" --quiet
  else
    run "${tpus[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet
  fi
}

readonly most=5 # slices that `keep` loses in a row, without a job, until it gives up

# After a step that failed on the hosts: returns 3 if the slice is gone, 0 if the job was started all
# the same, or else 2, as the step would only fail again.
judge() {
  local state states=''
  while :; do
    sleep "$poll" # as gcloud does not say at once that a slice is gone
    state=$(slice_state)
    case $state in
      UNREACHABLE) continue ;;
      READY | ACTIVE) ;;
      *) return 3 ;;
    esac
    [[ $1 == setup ]] || states=$(job_states)
    [[ $states == unreachable ]] || break
  done
  [[ $states != running ]] || return 0
  echo "error: $1 failed on $name, which is $state; what the hosts said stands above" >&2
  return 2
}

# One slice's job, from the start or found there. Returns as `watch`, and 3 where the slice went before
# the job was started, 75 where it is not known what to do yet.
attempt() {
  local made states=none status=0
  create || return
  # On a slice that was there a job may run, whose directory `setup` would remove.
  if ! $dry_run && ! $made; then
    states=$(job_states)
    if [[ $states == unreachable ]]; then
      echo "$(date +%H:%M) $name: not all hosts answer; a job may be running there" >&2
      return 75
    fi
  fi
  if [[ $states != *running* ]]; then
    setup || status=$?
    if ((status == 1)); then judge setup || return; fi
    if ((status)); then return "$status"; fi
    start "$@" || judge start || return
  fi
  begun=true
  watch
}

keep() {
  local status begun early=0
  while :; do
    status=0 begun=false
    attempt "$@" || status=$?
    if $begun; then early=0; fi
    if ((status == 3)); then
      status=1 early=$((early + 1))
      if ((early == most)); then
        echo "error: $name: $most slices in a row were gone before the job was started" >&2
        status=2
      fi
    fi
    case $status in
      75) sleep "$poll" ;; # nothing was done
      1)
        echo "$(date +%H:%M) $name: again; the job goes on from its workdir" >&2
        remove || true
        sleep "$poll"
        ;;
      *)
        # Also after an error of the job's: an idle slice costs what a busy one does.
        remove
        return "$status"
        ;;
    esac
  done
}

case $action in
  create) create ;;
  setup) setup ;;
  run) start "$@" ;;
  logs)
    run "${tpus[@]}" tpu-vm ssh "$name" "${place[@]}" --worker=0 \
      '--command=cd pdrec && tail --pid="$(cat starter 2>/dev/null || cat pid)" -n +1 -F log'
    ;;
  status)
    if $dry_run; then
      run "${describe[@]}"
    else
      echo "$name: $(slice_state)"
    fi
    on_all_hosts "$job_state"
    ;;
  stop) on_all_hosts 'cd pdrec && kill -TERM "$(cat pid || cat starter)"' ;;
  delete) remove ;;
  keep) keep "$@" ;;
esac
