"""Tiny models of each kind, as the Hub would give them, with weights that follow from their names."""

import json
import re
import zlib

import numpy as np
from goldens import OURS
from safetensors.numpy import save_file

WORDS = "a dog dogs run ##ning runs snow the two man . , red shirt cafe the climb ##s rock".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]
BERT = {"model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 24, "hidden_act": "gelu", "max_position_embeddings": 40,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12}
CAPTIONS = ["A dog running .", "two DOGS, the snow", "", "the man climbs the rock " * 3, "Café unknownword",
            "dog " * 60]
# CLIP's byte-level BPE of letters and a little punctuation: every symbol also ends words.
_SYMBOLS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,'!<|>Ã©"]
MERGES = ["d o", "do g</w>", "t h", "th e</w>", "a n", "Ã ©</w>"]
CLIP_VOCABULARY = {token: i for i, token in enumerate([
    *_SYMBOLS, *(symbol + "</w>" for symbol in _SYMBOLS), *(merge.replace(" ", "") for merge in MERGES),
    "<|startoftext|>", "<|endoftext|>"])}
CLIP_END = CLIP_VOCABULARY["<|endoftext|>"]


def weight(name, shape):
    """The golden files' rule: a tensor follows from its name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    z = np.asarray(z, np.float32)
    if len(shape) >= 2:
        return z / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * z if name.endswith(".weight") else np.float32(0.1) * z


def bert_weights(config):
    """Weights for a BERT of `config`, under the names `transformers` gives them."""
    h, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {"embeddings.word_embeddings.weight": (config["vocab_size"], h),
              "embeddings.position_embeddings.weight": (config["max_position_embeddings"], h),
              "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], h),
              "embeddings.LayerNorm.weight": (h,), "embeddings.LayerNorm.bias": (h,),
              "pooler.dense.weight": (h, h), "pooler.dense.bias": (h,)}
    dense = {"attention.self.query": (h, h), "attention.self.key": (h, h), "attention.self.value": (h, h),
             "attention.output.dense": (h, h), "intermediate.dense": (inner, h), "output.dense": (h, inner)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in dense.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.weight": (h,), f"encoder.layer.{i}.{name}.bias": (h,)}
    return {name: weight(name, shape) for name, shape in shapes.items()}


def golden_model(path):
    """(configuration, tensors by name) of the model of a golden file."""
    with np.load(path) as golden:
        config, manifest = (json.loads(str(golden[name])) for name in ("config", "manifest"))
    return config, {name: weight(name, shape) for name, shape in manifest.items()}


def _one_layer(path):
    """The model of a golden file with the first of its layers alone: less to compile."""
    config, tensors = golden_model(path)
    config = {name: 1 if name in ("n_layers", "num_hidden_layers") else value for name, value in config.items()}
    return config, {name: t for name, t in tensors.items() if not re.search(r"layers?\.[1-9]", name)}


def write_model(folder, kind):
    """Writes config.json, model.safetensors and a vocabulary; kind: bert, distilbert, clip_text_model or clip."""
    config, tensors = BERT, None
    if kind == "bert":
        tensors = bert_weights(config)
    elif kind == "distilbert":
        config, tensors = _one_layer(OURS / "distilbert_64.npz")
    else:
        config, tensors = _one_layer(OURS / "clip_text_64.npz")
        config = config | {"eos_token_id": CLIP_END, "bos_token_id": CLIP_END - 1}
        if kind == "clip":
            tensors["visual_projection.weight"] = np.zeros((48, 8), np.float32)
            text = {k: v for k, v in config.items() if k not in ("model_type", "projection_dim")}
            config = {"model_type": "clip", "projection_dim": config["projection_dim"], "text_config": text}
        (folder / "vocab.json").write_text(json.dumps(CLIP_VOCABULARY))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    if "distil" in kind or kind == "bert":
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
