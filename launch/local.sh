#!/usr/bin/env bash
# One run on this machine, on all of its devices.
# Usage: [PROCESSES=N] launch/local.sh quickstart|FILE [--config.key=value ...]
# One process uses every device that jax sees and is the fastest on one machine; N of them, which find each other by
# jax.distributed, behave as they would on a cluster. On a machine with GPUs process i gets the i-th GPU.
# Ctrl-C or SIGTERM stops all of them; the same command then continues where they stopped.
set -euo pipefail
config=${1:?name of a config, or a file; see the first lines of this script}
shift
processes=${PROCESSES:-1}
if ((processes == 1)); then
    exec mdw run "$config" "$@"
fi

port=${PORT:-$((20000 + RANDOM % 20000))}
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
pids=()
stop_all() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
signal=
trap 'signal=143; stop_all' TERM
trap 'signal=130; stop_all' INT
for ((i = 0; i < processes; i++)); do
    (
        export MDW_COORDINATOR=localhost:$port MDW_PROCESSES=$processes MDW_PROCESS=$i
        if command -v nvidia-smi >/dev/null; then export CUDA_VISIBLE_DEVICES="${gpus[i]:-$i}"; fi
        exec mdw run "$config" "$@"
    ) &
    pids+=($!)
done

# After a failure all end by themselves, and say of what; who has not begun to, is stopped. A trap interrupts `wait`.
status=0
running=$processes
while ((running > 0)); do
    code=0
    wait -n || code=$?
    if ((code > 128)) && [[ $signal == "$code" ]]; then
        signal=done:$signal
        continue
    fi
    ((running -= 1)) || true
    if ((code != 0 && status == 0)); then
        status=$code
        sleep "${EXPLAIN:-3}"
        stop_all
    fi
done
if [[ $signal == *130 ]]; then status=130; fi
exit "$status"
