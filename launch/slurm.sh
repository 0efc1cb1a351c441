#!/usr/bin/env bash
# Submits the main job to Slurm: one process a node, with all its GPUs, or --tasks of them.
#
#   launch/slurm.sh [OPTIONS] -- --config=FILE --workdir=DIR [ARGUMENTS]
#
#   --nodes=N          how many                               PDREC_NODES, or 1
#   --tasks=N          processes a node                       PDREC_TASKS, or 1
#   --gpus=N           GPUs a node, 0 for none                PDREC_GPUS, or 0
#   --cpus=N           processors a process                   PDREC_CPUS, or the cluster's default
#   --time=LIMIT       as sbatch takes it                     PDREC_TIME, or 24:00:00
#   --partition=NAME                                          PDREC_PARTITION
#   --account=NAME                                            PDREC_ACCOUNT
#   --name=NAME        of the job                             PDREC_NAME, or pdrec
#   --notice=SECONDS   SIGTERM so long before the limit       PDREC_NOTICE, or 300
#   --port=PORT        of the coordinator                     PDREC_PORT, or one from the job's id
#   --dry-run          print what would run
#
# At the time limit and when preempted the job saves its state, goes back to the queue, and goes on
# from WORKDIR. PYTHON names the interpreter on the nodes, or else .venv/bin/python is taken.
# FILE, DIR and the job's output count from the directory of the submission; the job runs in the
# directory of the package, from which fields such as config.data.path count.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

nodes=${PDREC_NODES:-1} tasks=${PDREC_TASKS:-1} gpus=${PDREC_GPUS:-0} cpus=${PDREC_CPUS:-}
limit=${PDREC_TIME:-24:00:00} partition=${PDREC_PARTITION:-} account=${PDREC_ACCOUNT:-}
name=${PDREC_NAME:-pdrec} notice=${PDREC_NOTICE:-300} port=${PDREC_PORT:-}
python=${PYTHON:-}
while (($#)); do
  case $1 in
    --nodes=*) nodes=$(value_of "$1") ;;
    --tasks=*) tasks=$(value_of "$1") ;;
    --gpus=*) gpus=$(value_of "$1") ;;
    --cpus=*) cpus=$(value_of "$1") ;;
    --time=*) limit=$(value_of "$1") ;;
    --partition=*) partition=$(value_of "$1") ;;
    --account=*) account=$(value_of "$1") ;;
    --name=*) name=$(value_of "$1") ;;
    --notice=*) notice=$(value_of "$1") ;;
    --port=*) port=$(value_of "$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  shift
done
require_number --nodes "$nodes"
require_number --tasks "$tasks"
require_number --notice "$notice" 1 65535 # more than that sbatch does not take
[[ -z $port ]] || require_port --port "$port"
[[ -z $cpus ]] || require_number --cpus "$cpus"
require_number --gpus "$gpus" 0
if ((gpus && tasks > 1 && gpus % tasks)); then
  fail "--tasks: a divisor of the $gpus GPUs a node is expected, got $tasks"
fi
# To sbatch 0 is no limit, before which no signal would come.
[[ $limit =~ ^([0-9]+-)?[0-9]+(:[0-5]?[0-9]){0,2}$ && $limit == *[1-9]* ]] ||
  fail "--time: minutes, hours:minutes:seconds or days-hours above 0 are expected, got '$limit'"
require_name --name "$name"
require_job "$@"

# The job starts in another directory than this one, from which the paths count.
arguments=()
for argument in "$@"; do
  case $argument in
    --config=[!/]* | --workdir=[!/]*) argument=${argument%%=*}=$PWD/${argument#*=} ;;
  esac
  arguments+=("$argument")
done
[[ $python != [!/]*/* ]] || python=$PWD/$python

# Not by --export, in which a comma would end the value. %% is sbatch's % in a file's name.
command=(env "PDREC_PORT=$port" "PYTHON=$python" sbatch --export=ALL "--job-name=$name"
  "--nodes=$nodes" "--ntasks-per-node=$tasks" "--time=$limit" --requeue --open-mode=append
  "--output=${PWD//%/%%}/$name-%j.log" "--signal=TERM@$notice")
if ((gpus)); then command+=("--gpus-per-node=$gpus"); fi
[[ -z $cpus ]] || command+=("--cpus-per-task=$cpus")
[[ -z $partition ]] || command+=("--partition=$partition")
[[ -z $account ]] || command+=("--account=$account")
# --chdir: the job starts where the package is, whatever the directory of the submission.
command+=("--chdir=$(cd "$here/.." && pwd)" "$here/job.sbatch" "${arguments[@]}")
run "${command[@]}"
