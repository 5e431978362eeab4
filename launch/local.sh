#!/usr/bin/env bash
# One run on this machine. Usage: [PROCESSES=N] launch/local.sh configs/quickstart.py [--config.key=value ...]
# One process uses every device that jax sees and is the fastest on one machine; N of them, which find each other by
# jax.distributed, show here what a cluster would do. On a machine with GPUs process i gets GPU i.
# Ctrl-C or SIGTERM stops all of them where the same command goes on from.
set -euo pipefail
config=$1
shift
processes=${PROCESSES:-1}
if ((processes == 1)); then
    exec mdw run --config "$config" "$@"
fi

port=${PORT:-$((20000 + RANDOM % 20000))}
pids=()
end() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
asked=
trap 'asked=143; end' TERM
trap 'asked=130; end' INT
for ((i = 0; i < processes; i++)); do
    (
        export MDW_COORDINATOR=localhost:$port MDW_PROCESSES=$processes MDW_PROCESS=$i
        if command -v nvidia-smi >/dev/null; then export CUDA_VISIBLE_DEVICES=$i; fi
        exec mdw run --config "$config" "$@"
    ) &
    pids+=($!)
done

# The first failure ends the rest: alone they would wait for it until jax gives up. A trap cuts `wait` short.
status=0
left=$processes
while ((left > 0)); do
    code=0
    wait -n || code=$?
    if ((code > 128)) && [[ $asked == "$code" ]]; then
        asked=done:$asked
        continue
    fi
    ((left -= 1)) || true
    if ((code != 0 && status == 0)); then
        status=$code
        end
    fi
done
if [[ $asked == *130 ]]; then status=130; fi
exit "$status"
