#!/usr/bin/env bash
# The preset bench in order of priority: stop it anywhere, start it again and it goes on; each line is whole by itself.
# Usage: launch/grid.sh configs/flickr8k.py runs/grid [--config.key=value ...]     (data and weights as --config.data...)
# Several at once share the folder: PART=0/4 launch/grid.sh ..., PART=1/4 ... on as many processes or hosts.
set -euo pipefail
config=$1 folder=$2
shift 2
cells() {
    mdw sweep --config "$config" --config.run.dir="$folder" "${settings[@]}" --part "${PART:-0/1}" "$@" || echo "some cells failed; going on" >&2
}
settings=("$@")
all=random,herding,k_center,forgetting,clip_filter,vld,tesla,lors,repblend,infonce,mdw
distilled=vld,tesla,lors,repblend,infonce,mdw
# One set a cell first, so that a table exists early; then three.
cells --over noise.rate=0.4,0.6,0.2,0 --over preset=$all --seeds 1
cells --over noise.rate=0.4,0.6,0.2,0 --over preset=experts,full
cells --over noise.rate=0.4,0.6,0.2,0 --over preset=$all --seeds 3
cells --over noise.rate=0.4,0.6,0.2,0 --over preset=vld_dtcl,tesla_dtcl,lors_dtcl,repblend_dtcl --seeds 3
cells --over distill.pairs=200,500 --over noise.rate=0.4,0.6,0.2,0 --over preset=$distilled --seeds 3
cells --over noise.protocol=caption --over noise.rate=0.4,0.6,0.2 --over preset=$distilled --seeds 3
# Ablations of the distillation and of the experts, at 40 % noise.
cells --over distill.ceo=false --over preset=mdw --seeds 3
cells --over distill.loss=nce --over distill.correspondence=identity --over preset=mdw --seeds 3
cells --over distill.gradient=detached --over preset=mdw --seeds 3
cells --over distill.inner_steps=4,8,32 --over preset=mdw --seeds 3
cells --over distill.trajectories=1,4 --over preset=mdw --seeds 3
cells --over distill.rank=1,5,20 --over preset=mdw --seeds 3
cells --over experts.count=1,2,8 --over preset=mdw --seeds 3
cells --over experts.recipe=infonce,infonce_averaged,tolerant,single,peer,no_recovery,no_guidance,no_average,no_scouts,filter,oracle --over preset=experts
