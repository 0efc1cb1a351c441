#!/usr/bin/env bash
# Runs the main job on Kubernetes as a JobSet, one process a node.
#
#   launch/kubernetes.sh render --device=gpu|tpu [OPTIONS] -- ARGUMENTS    print the manifest
#   launch/kubernetes.sh apply --device=gpu|tpu [OPTIONS] -- ARGUMENTS     and hand it to the cluster
#   launch/kubernetes.sh logs | status | delete [--name=NAME] [--namespace=NAME]
#
#   --name=NAME            of the job                         PDREC_NAME, or pdrec
#   --namespace=NAME                                          PDREC_NAMESPACE, or kubectl's own
#   --image=IMAGE          with this package                  PDREC_IMAGE
#   --claim=NAME           volume that all pods share         PDREC_CLAIM
#   --mount=DIR            where it is mounted                PDREC_MOUNT, or /shared
#   --hosts=N              nodes, with gpu                    PDREC_HOSTS, or 1
#   --devices=N            GPUs or TPU chips a node           PDREC_DEVICES, or 8 and 4
#   --accelerator=NAME     GKE's label of the nodes           PDREC_ACCELERATOR, or
#                          nvidia-h100-80gb and tpu-v5-lite-podslice
#   --topology=AxB[xC]     chips of a slice, with tpu         PDREC_TOPOLOGY
#   --slices=N             slices, with tpu                   PDREC_SLICES, or 1
#   --restarts=N           after losses of pods               PDREC_RESTARTS, or 100
#   --notice=SECONDS       between SIGTERM and SIGKILL        PDREC_NOTICE, or 120
#   --port=PORT            of the coordinator, with gpu       PDREC_PORT, or 12355
#   --dry-run              print what would run
#
# launch/Dockerfile makes the image. ARGUMENTS are those of pdrec_jax.main; --workdir lies in DIR.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

device=${PDREC_DEVICE:-} name=${PDREC_NAME:-pdrec} namespace=${PDREC_NAMESPACE:-}
image=${PDREC_IMAGE:-} claim=${PDREC_CLAIM:-} mount=${PDREC_MOUNT:-/shared}
hosts=${PDREC_HOSTS:-} devices=${PDREC_DEVICES:-} accelerator=${PDREC_ACCELERATOR:-}
topology=${PDREC_TOPOLOGY:-} slices=${PDREC_SLICES:-} restarts=${PDREC_RESTARTS:-100}
notice=${PDREC_NOTICE:-120} port=${PDREC_PORT:-}
case ${1:-} in
  render | apply | logs | status | delete) action=$1 ;;
  --help | -h) usage && exit ;;
  *) fail "render, apply, logs, status or delete is expected, got '${1:-}'" ;;
esac
shift
while (($#)); do
  case $1 in
    --device=*) device=$(value_of "$1") ;;
    --name=*) name=$(value_of "$1") ;;
    --namespace=*) namespace=$(value_of "$1") ;;
    --image=*) image=$(value_of "$1") ;;
    --claim=*) claim=$(value_of "$1") ;;
    --mount=*) mount=$(value_of "$1") ;;
    --hosts=*) hosts=$(value_of "$1") ;;
    --devices=*) devices=$(value_of "$1") ;;
    --accelerator=*) accelerator=$(value_of "$1") ;;
    --topology=*) topology=$(value_of "$1") ;;
    --slices=*) slices=$(value_of "$1") ;;
    --restarts=*) restarts=$(value_of "$1") ;;
    --notice=*) notice=$(value_of "$1") ;;
    --port=*) port=$(value_of "$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  shift
done
require_name --name "$name"
kubectl=(kubectl)
[[ -z $namespace ]] || kubectl+=("--namespace=$namespace")

require_plain() {
  [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || fail "$1: $3 is expected, got '$2'"
}

# Options that are for --device=$1 alone, as --name=VALUE, and are expected to have no value here.
refuse() {
  local option
  for option in "${@:2}"; do
    [[ $option == *= ]] || fail "${option%%=*}: for --device=$1"
  done
}

# A string of JSON, which YAML reads as it is; $ before ( would be Kubernetes' own, and is doubled.
json_string() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//\$(/\$\$(}
  [[ $text != *[[:cntrl:]]* ]] || fail "an argument with a line break or a control character: $1"
  echo "\"$text\""
}

check() {
  local chips=1 side
  case $device in
    gpu)
      devices=${devices:-8} accelerator=${accelerator:-nvidia-h100-80gb}
      refuse tpu "--topology=$topology" "--slices=$slices"
      hosts=${hosts:-1}
      require_number --hosts "$hosts"
      ;;
    tpu)
      refuse gpu "--hosts=$hosts" "--port=$port"
      devices=${devices:-4} accelerator=${accelerator:-tpu-v5-lite-podslice}
      [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
        fail "--topology: AxB or AxBxC is expected, for instance 4x4, got '$topology'"
      for side in ${topology//x/ }; do chips=$((chips * side)); done
      require_number --devices "$devices"
      ((chips % devices == 0)) || fail "--devices: a divisor of $chips chips is expected, got $devices"
      hosts=$((chips / devices))
      ;;
    *) fail "--device: gpu or tpu is expected, got '$device'" ;;
  esac
  slices=${slices:-1} port=${port:-12355}
  require_number --devices "$devices"
  require_number --slices "$slices"
  require_number --restarts "$restarts" 0
  require_number --notice "$notice"
  require_port --port "$port"
  require_plain --image "$image" "an image"
  require_plain --claim "$claim" "the name of a persistent volume claim"
  require_plain --accelerator "$accelerator" "a label of nodes"
  [[ $mount =~ ^/+[A-Za-z0-9._-][A-Za-z0-9._/-]*$ ]] ||
    fail "--mount: an absolute path is expected, got '$mount'"
  # Without the slashes at its end, since workdirs are held against it.
  mount=${mount%"${mount##*[!/]}"}
  require_job "$@"
  for argument in "$@"; do
    # Nor may it lead out again.
    [[ $argument != --workdir=* || $argument == "--workdir=$mount"/* && $argument/ != */../* ]] ||
      fail "--workdir: a directory in $mount is expected, which all pods share, got '${argument#*=}'"
  done
}

render() {
  local text arguments='' argument key
  for argument in "$@"; do
    arguments+="                    - $(json_string "$argument")"$'\n'
  done
  local -A values=([NAME]=$name [IMAGE]=$image [CLAIM]=$claim [MOUNT]=$mount [HOSTS]=$hosts
    [DEVICES]=$devices [ACCELERATOR]=$accelerator [TOPOLOGY]=$topology [SLICES]=$slices
    [RESTARTS]=$restarts [NOTICE]=$notice [PORT]=$port)
  text=$(sed 1d "$here/jobset-$device.yaml")
  for key in "${!values[@]}"; do text=${text//"\${$key}"/"${values[$key]}"}; done
  # Last, so that nothing in them is taken for a key.
  text=${text/"\${ARGUMENTS}"/"${arguments%$'\n'}"}
  printf '%s\n' "$text"
}

case $action in
  render)
    check "$@"
    render "$@"
    ;;
  apply)
    check "$@"
    if $dry_run; then
      echo "$(quoted "${kubectl[@]}" apply --filename=-) <<'END'"
      render "$@"
      echo END
    else
      render "$@" | "${kubectl[@]}" apply --filename=-
    fi
    ;;
  logs)
    # Of the first slice's first pod alone: kubectl follows no more than five, and the rest is silent.
    selector=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0
    run "${kubectl[@]}" logs --follow --tail=-1 \
      "--selector=$selector,batch.kubernetes.io/job-completion-index=0"
    ;;
  status)
    run "${kubectl[@]}" get jobset "$name"
    run "${kubectl[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
    ;;
  delete) run "${kubectl[@]}" delete jobset "$name" ;;
esac
