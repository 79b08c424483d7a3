#!/usr/bin/env bash
# Packages a model file that uses handler_factory into <model_name>.mar in the current directory.
set -euo pipefail

usage() {
  echo "Usage: ./build.sh --model_name <model_name> --model_file <model_file> --config_file <config_file>" \
    "--requirements_file <requirements_file> --checkpoint_file <checkpoint_file> --version <version>" \
    "[--extra_files <extra_files>]" >&2
  exit 1
}

fail() {
  echo "build.sh: $1" >&2
  usage
}

model_name="" model_file="" config_file="" requirements_file="" checkpoint_file="" version="" extra_files=""

while (($#)); do
  case "$1" in
    --model_name | --model_file | --config_file | --requirements_file | --checkpoint_file | --version | --extra_files)
      (($# > 1)) || fail "$1 needs a value."
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    *) fail "$1 is no flag of this script." ;;
  esac
done

for flag in model_name model_file config_file requirements_file checkpoint_file version; do
  [[ -n "${!flag}" ]] || fail "--$flag is missing."
done
for flag in model_file config_file requirements_file checkpoint_file extra_files; do
  [[ -z "${!flag}" || -f "${!flag}" ]] || fail "--$flag: there is no file ${!flag}."
done

torch-model-archiver --force --runtime python3 \
  --model-name "$model_name" \
  --version "$version" \
  --handler "$model_file" \
  --model-file "$(dirname "${BASH_SOURCE[0]}")/base_handler.py" \
  --serialized-file "$checkpoint_file" \
  --config-file "$config_file" \
  --requirements-file "$requirements_file" \
  ${extra_files:+--extra-files "$extra_files"}
