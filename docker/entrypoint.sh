#!/bin/sh
# What the words after the name of the image mean:
#
#   serve [FLAG...]           a server with the image's config.properties
#   torchserve [FLAG...]      a server with those flags; it stays in the foreground, with or without --start
#   "COMMAND [WORD...]"       one text: a line for the shell
#   COMMAND [WORD...]         that command, as it is
#
# The command takes the place of this shell, so the signals of the container reach it and its exit status is the
# container's.
#
# MODEL_SERVER_HOME is where config.properties lies, /home/model-server by default. TS_CONFIG_FILE, or else CONFIG_PATH,
# names another file.
set -eu

home=${MODEL_SERVER_HOME:-/home/model-server}
config=${TS_CONFIG_FILE:-${CONFIG_PATH:-$home/config.properties}}

# Who needs a key was decided, by the configuration or by the environment.
tokens_are_settled() {
  [ -n "${MARINER_TOKEN_AUTHORIZATION-}${MARINER_DISABLE_TOKEN_AUTHORIZATION-}" ] ||
    grep -Eqs '^[[:blank:]]*(disable_)?token_authorization[[:blank:]=:]' "$config"
}

case ${1-serve} in
  serve)
    if [ $# -gt 0 ]; then shift; fi
    # Nobody, as in TorchServe's image.
    tokens_are_settled || set -- --disable-token-auth "$@"
    exec torchserve --foreground --ts-config "$config" "$@"
    ;;
  *[[:blank:]]*'&&'* | *[[:blank:]]*';'* | *[[:blank:]]*'|'* | *[[:blank:]]*'
'*)
    exec /bin/sh -c "$*"
    ;;
  torchserve | torchserve[[:blank:]]*)
    # Container files often have a flag and its value in one word ("--models my_model=my_model.mar"), or a variable.
    # The shell reads such words again; the others stay what they are: there may be a "&" in the URL of an archive.
    words=
    for word; do
      case $word in
        *[[:space:]\$\'\"\\]*) words="$words $word" ;;
        *) words="$words '$word'" ;;
      esac
    done
    eval "set -- $words"
    shift
    exec torchserve --foreground "$@"
    ;;
  *[[:blank:]]*)
    exec /bin/sh -c "$*"
    ;;
  *)
    exec "$@"
    ;;
esac
