#!/usr/bin/env bash
# One run on a Cloud TPU slice, by default of one host: requests it as a queued resource, installs this checkout, runs.
# Usage: NAME=mdw ZONE=us-central1-a launch/cloud_tpu.sh coco|FILE --config.run.dir=/shared/runs/coco
#   TYPE    accelerator type: v5litepod-8 (eight chips, one host) by default; v6e-8, v4-16, v5p-32, ...
#   SETUP   commands for every host before the run, such as mounting the file share that holds the data and the run directory:
#           several hosts need one that all of them see, and the disk of a slice goes with the slice
#   MORE    further flags of `gcloud compute tpus queued-resources create`, such as --spot or --reserved
#   RUNTIME the software of the hosts, where Google's for TYPE is not the one below
# FILE is a path inside this checkout. The same command again continues, on the same slice or, after a spot slice was taken
# away, on a new one. Delete it with
#   gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force
set -euo pipefail
: "${NAME:?name of the slice}" "${ZONE:?zone, such as us-central1-a}"
config=${1:?name of a config, or a file; see the first lines of this script}
shift
TYPE=${TYPE:-v5litepod-8}
case $TYPE in
v5lite*) runtime=v2-alpha-tpuv5-lite ;;
v5p*) runtime=v2-alpha-tpuv5 ;;
v6e*) runtime=v2-alpha-tpuv6e ;;
*) runtime=tpu-ubuntu2204-base ;;
esac
cd "$(dirname "$0")/.."
tpu() { gcloud compute tpus "$@" --zone="$ZONE" --quiet; }
on_all_hosts() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }
state() { tpu queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || true; }

case $(state) in
SUSPENDED | SUSPENDING | FAILED) tpu queued-resources delete "$NAME" --force ;;
esac
if [[ -z $(state) ]]; then
    # shellcheck disable=SC2086 # MORE is several words
    tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
        --runtime-version="${RUNTIME:-$runtime}" ${MORE:-}
fi
until [[ $(state) == ACTIVE ]]; do
    echo "$NAME: $(state)" >&2
    sleep "${POLL:-30}"
done

tar -czf - --exclude=.git --exclude=runs . >"${TMPDIR:-/tmp}/mdw.tar.gz"
tpu tpu-vm scp "${TMPDIR:-/tmp}/mdw.tar.gz" "$NAME:/tmp/mdw.tar.gz" --worker=all
# What an earlier start left, but not its runs. uv, because the Python of the hosts may be too old.
on_all_hosts "mkdir -p mdw && find mdw -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} + &&
    tar -xzf /tmp/mdw.tar.gz -C mdw && pip install --quiet --user uv &&
    ~/.local/bin/uv venv --quiet --clear --python 3.12 env &&
    ~/.local/bin/uv pip install --quiet --python env ./mdw 'jax[tpu]' && ${SETUP:-true}"
# MDW_DISTRIBUTED: jax asks the slice who its hosts are. Quoted once more, for the shell of the hosts.
on_all_hosts "cd mdw && MDW_DISTRIBUTED=1 ../env/bin/mdw run $(printf '%q ' "$config" "$@")"

# On GKE, with xpk, which makes the JobSet itself:
#   xpk workload create --cluster=CLUSTER --workload=mdw --tpu-type=v5litepod-8 --docker-image=IMAGE --max-restarts=3 \
#       --command="MDW_DISTRIBUTED=1 MDW_STATUS_WHEN_STOPPED=85 mdw run coco"
