# shellcheck shell=bash
# Sourced by the launchers: how a command is written down, run, or (with --dry-run) printed instead.

DRY_RUN=false

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 2
}

# The arguments as one line that any POSIX shell (here, behind ssh, in a container) reads back as the same arguments.
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

# needed SETTING VALUE: a setting without a default.
needed() {
  [ -n "$2" ] || fail "$1 is not set; see the header of this script (--help)"
}

# The script's own header, from the second line to the first that is no comment.
print_header() {
  sed -n -e '2,/^[^#]/{/^#/!q' -e 's/^# \{0,1\}//p' -e '}' "$0"
}
