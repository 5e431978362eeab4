#!/usr/bin/env bash
# One run on this machine, on every device that jax sees. Usage: launch/local.sh configs/quickstart.py [--config.key=value ...]
set -euo pipefail
config=$1
shift
exec mdw run --config "$config" "$@"
