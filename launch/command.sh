# shellcheck shell=bash
# Sourced by the launchers: reads settings, and writes down a command, runs it, or (with --dry-run) prints it
# instead.

DRY_RUN=false
command='' arguments=() place=() env=()

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 2
}

# The arguments as one line that any POSIX shell (here, behind ssh, in a container) reads back as the same
# arguments.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$quote}'" ;;
    esac
    line+=" $word"
  done
  printf '%s' "${line# }"
}

run() {
  if $DRY_RUN; then
    printf '%s\n' "$(quoted "$@")"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# needed SETTING...: those that have no default. (No setting may have the name of the variable here, which would hide it.)
needed() {
  local of
  for of in "$@"; do
    [ -n "${!of}" ] || fail "--$of is not set; see the header of this script (--help)"
  done
}

# whole_numbers SETTING...: expects one in each.
whole_numbers() {
  local of
  for of in "$@"; do
    [[ ${!of} =~ ^[0-9]+$ ]] || fail "--${of//_/-}: expected a number, got '${!of}'"
  done
}

# place_by SETTING...: sets place, the flags --SETTING=VALUE of those that are set.
place_by() {
  local of
  place=()
  for of in "$@"; do
    [ -z "${!of}" ] || place+=(--"$of=${!of}")
  done
}

# read_settings COMMANDS VALUES LISTS FLAGS ARGUMENTS...: reads the settings before the command. A setting
# --of-this-name goes to the variable of_this_name: for one of VALUES its value, for one of LISTS a further
# entry of an array, for one of FLAGS true. Sets command, one of COMMANDS ("a, b or c"), and arguments, what
# follows it.
read_settings() {
  local expected=$1 values=" $2 " lists=" $3 " flags=" $4 dry-run help " setting value variable
  shift 4
  while [[ ${1:-} == -* ]]; do
    [ "$1" != -h ] || set -- --help
    setting=${1%%=*}
    setting=${setting#--}
    if [[ -z $setting || $values$lists$flags != *" $setting "* ]]; then
      fail "unknown setting ${1%%=*}; settings come before the command, the run's arguments after it (--help)"
    elif [[ $flags == *" $setting "* ]]; then
      [ "$1" = "--$setting" ] || fail "--$setting takes no value"
      value=true
    elif [[ $1 == *=* ]]; then
      value=${1#*=}
    else
      [ $# -gt 1 ] || fail "$1 needs a value"
      value=$2
      shift
    fi
    shift
    variable=${setting//-/_}
    case $setting in
      help) print_header && exit 0 ;;
      dry-run) DRY_RUN=true ;;
      *)
        if [[ $lists == *" $setting "* ]]; then
          eval "$variable+=(\"\$value\")"
        else
          printf -v "$variable" %s "$value"
        fi
        ;;
    esac
  done
  [ -n "${1:-}" ] || fail "expected a command: $expected (--help)"
  command=$1
  values=${expected//,/}
  [[ " ${values/ or / } " == *" $command "* ]] || fail "unknown command '$command': expected $expected (--help)"
  shift
  # shellcheck disable=SC2034 # by the script that sources this
  arguments=("$@")
  for variable in ${env[@]+"${env[@]}"}; do
    [[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env: expected NAME=VALUE, got '$variable'"
  done
}

# The script's own header, from the second line to the first that is no comment.
print_header() {
  sed -n -e '2,/^[^#]/{/^#/!q' -e 's/^# \{0,1\}//p' -e '}' "$0"
}
