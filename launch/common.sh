# shellcheck shell=bash
# What all launchers share; sourced, never run.

dry_run=false

fail() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the top of a script is its help.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

# One command as a line that a shell reads back to the same words.
quoted() {
  local line
  line=$(printf ' %q' "$@")
  echo "${line:1}"
}

# Runs a command, or with --dry-run prints it.
run() {
  if $dry_run; then quoted "$@"; else "$@"; fi
}

# The value of --name=VALUE, which may not be empty.
value_of() {
  [[ $1 == *=?* ]] || fail "$1: a value is expected, as in ${1%%=*}=VALUE"
  echo "${1#*=}"
}

# A whole number from $3, or 1, to $4; by default to one that the shell's sums can hold.
require_number() {
  local least=${3:-1} most=${4:-999999999}
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < least || $2 > most)); then
    fail "$1: a number from $least to $most is expected, got '$2'"
  fi
}

require_port() {
  require_number "$1" "$2" 1 65535
}

require_name() {
  [[ $2 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "$1: up to 40 lower-case letters, digits and hyphens are expected, got '$2'"
}

# The main job needs a config, and something to resume from that every process sees.
require_job() {
  local argument config=false workdir=false
  for argument in "$@"; do
    case $argument in
      --config=?*) config=true ;;
      --workdir=?*) workdir=true ;;
      --coordinator* | --num_processes* | --process_id*)
        fail "${argument%%=*}: the launcher sets it"
        ;;
    esac
  done
  $config || fail "after --, the arguments of pdrec_jax.main are expected, --config=FILE among them"
  $workdir || fail "after --, --workdir=DIR is expected, a directory that all processes share"
}
