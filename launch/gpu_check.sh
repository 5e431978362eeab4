#!/usr/bin/env bash
# What is known only where there is a GPU, in order of priority, so that ten minutes are well spent: speed of the steps
# against PyTorch in both modes, bfloat16, the share of the peak that NFNet-L0 reaches, then Flickr8k at 224 pixels.
# Usage: launch/gpu_check.sh OUT [SECONDS]     (600 seconds by default; what does not fit is left out, and said)
# Flickr8k is measured where FLICKR8K names a directory with dataset_flickr8k.json.gz, *.zip of the photos and
# minilm_l6_caption_features.int8.npz. Every result is a CSV under OUT; OUT/summary.txt lists what ran and how long.
set -uo pipefail
out=${1:?directory of the results; see the first lines of this script} limit=${2:-600}
mkdir -p "$out"
summary=$out/summary.txt
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch is on the same card
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/xla}
python - <<'PY' | tee "$summary" || exit 2
import sys
import jax
print("devices:", ", ".join(f"{d.device_kind}" for d in jax.devices()), "jax", jax.__version__)
if jax.default_backend() != "gpu":
    sys.exit("jax finds no GPU here: pip install -U 'jax[cuda13]' (or cuda12), see docs/launch.md.")
PY
part() { # NAME COMMAND...: run it in the time that is left
    local name=$1 left=$((limit - SECONDS)) status=0 began=$SECONDS
    shift
    if ((left < 20)); then
        echo "$name: left out, no time" | tee -a "$summary"
        return
    fi
    timeout --signal=TERM --kill-after=30 "$left" "$@" >"$out/$name.log" 2>&1 || status=$?
    echo "$name: status $status, $((SECONDS - began)) s" | tee -a "$summary"
}
bench() { # NAME CONFIG [override...]
    local name=$1
    shift
    part "$name" mdw bench "$@" --config.run.dir="$out/$name"
}
mobile=(--config.model.weights=mobilenet_v1_0.25 --config.data.size=128)
bench projection flickr8k "${mobile[@]}" --config.distill.pairs=100
bench full flickr8k "${mobile[@]}" --config.model.mode=full --config.distill.pairs=100 --config.distill.batch=20 \
    --config.distill.inner_steps=8 --config.distill.trajectories=1 --config.distill.inner_lr_image=0.001 \
    --config.distill.inner_lr_text=0.001
bench nfnet_float32 flickr30k --config.model.mode=projection --config.experts.augment=none
bench nfnet_bfloat16 flickr30k --config.model.mode=projection --config.experts.augment=none --config.model.dtype=bfloat16
bench nfnet_full_bfloat16 flickr30k --config.model.dtype=bfloat16
if [[ -n ${FLICKR8K:-} ]]; then
    flickr=(--config.data.annotations="$FLICKR8K/dataset_flickr8k.json.gz" --config.data.images="$FLICKR8K/*.zip"
        --config.text.path="$FLICKR8K/minilm_l6_caption_features.int8.npz" --config.model.weights=mobilenet_v2
        --config.run.dir="$out/flickr8k" --config.distill.sets=1 --config.evaluate.students=3)
    for cell in 0.4:mdw 0.4:vld 0.4:filter_vld 0:mdw 0.4:repblend 0.4:lors 0.6:mdw 0.2:mdw 0.6:filter_vld; do
        part "flickr8k_${cell/:/_}" mdw sweep flickr8k "${flickr[@]}" --grid noise.rate="${cell%:*}" \
            --grid preset="${cell#*:}"
    done
else
    echo "flickr8k: left out, FLICKR8K is not set" | tee -a "$summary"
fi
