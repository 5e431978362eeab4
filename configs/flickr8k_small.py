"""Flickr8k as in flickr8k.py on a tower seven times cheaper, MobileNetV1 0.25: the whole field on one bench, on a CPU.

    mdw sweep --config configs/flickr8k_small.py --config.data.annotations=dataset_flickr8k.json.gz \
        --config.data.images='flickr8k/*.zip' --config.text.path=minilm_l6_caption_features.int8.npz \
        --config.model.weights=mobilenet_v1_0.25_128_quant.q8.npz \
        --over noise.rate=0.4,0.6,0.2,0 --over preset=random,vld,tesla,lors,repblend,infonce,mdw
"""
