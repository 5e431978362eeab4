#!/usr/bin/env bash
# The comparison of presets in order of priority. Stop it at any time: started again, it continues where it stopped.
# Usage: launch/grid.sh flickr8k|FILE runs/grid [--config.key=value ...]     (data and weights as --config.data...)
# Several processes or hosts share the directory: SHARD=0/4 launch/grid.sh ..., SHARD=1/4 launch/grid.sh ..., and so on.
set -euo pipefail
config=${1:?name of a config, or a file; see the first lines of this script} directory=${2:?directory of the results}
shift 2
overrides=("$@")
failed=0
export MDW_STATUS_WHEN_STOPPED=85 # so that "stopped" differs from "finished"
cells() {
    local status=0
    mdw sweep "$config" --config.run.dir="$directory" "${overrides[@]}" --shard "${SHARD:-0/1}" "$@" || status=$?
    case $status in
    0) ;;
    85 | 130) exit "$status" ;; # stopped: the next line would go on
    *) failed=1 && echo "some cells failed; continuing with the others" >&2 ;;
    esac
}
all=random,herding,k_center,forgetting,clip_filter,vld,tesla,lors,repblend,infonce,mdw
distilled=vld,tesla,lors,repblend,infonce,mdw
# First one set per cell, so that a table exists early; then three.
cells --grid noise.rate=0.4,0.6,0.2,0 --grid preset=$all --seeds 1
cells --grid noise.rate=0.4,0.6,0.2,0 --grid preset=experts,full
cells --grid noise.rate=0.4,0.6,0.2,0 --grid preset=$all --seeds 3
cells --grid noise.rate=0.4,0.6,0.2,0 --grid preset=vld_dtcl,tesla_dtcl,lors_dtcl,repblend_dtcl --seeds 3
cells --grid distill.pairs=200,500 --grid noise.rate=0.4,0.6,0.2,0 --grid preset=$distilled --seeds 3
cells --grid noise.protocol=caption --grid noise.rate=0.4,0.6,0.2 --grid preset=$distilled --seeds 3
# Ablations of the distillation and of the experts, at 40 % noise.
cells --grid distill.ceo=false --grid preset=mdw --seeds 3
cells --grid distill.loss=nce --grid distill.correspondence=identity --grid distill.correspondence_init=identity --grid preset=mdw --seeds 3
cells --grid distill.gradient=detached --grid preset=mdw --seeds 3
cells --grid distill.inner_steps=4,8,32 --grid preset=mdw --seeds 3
cells --grid distill.trajectories=1,4 --grid preset=mdw --seeds 3
cells --grid distill.rank=1,5,20 --grid preset=mdw --seeds 3
cells --grid experts.count=1,2,8 --grid preset=mdw --seeds 3
cells --grid experts.recipe=infonce,infonce_ema,tolerant,single,one_peer,no_recovery,no_guidance,no_ema,no_teachers,filter,oracle --grid preset=experts
exit "$failed"
