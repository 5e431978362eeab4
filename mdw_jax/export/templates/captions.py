"""Captions for train.py: reading them from a CSV, and the text features that students take."""

import csv
import hashlib
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
from checks import InputError  # beside this file

MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors",
               "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")


def read_captions(path, asked):
    """The (image, caption) rows of a CSV: those of test, if it has splits. asked: "IMAGE,CAPTION", or None to find them."""
    asked = asked.split(",") if asked else (None, None)
    known = (("image", "file_name", "filename", "file", "image_name"), ("caption", "text", "sentence", "description"))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = table_of(path, file, asked, known)
    except FileNotFoundError:
        raise InputError(f"There is no file '{path}'; give the CSV of the captions by --captions FILE.csv.") from None
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); give the CSV of the captions by --captions FILE.csv."
                         ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 ({error.reason} at byte {error.start}); save it as a CSV in UTF-8."
                         ) from None
    except csv.Error as error:
        raise InputError(f"'{path}' is no CSV that can be read ({error}); save it as a CSV in UTF-8.") from None
    if not rows:
        raise InputError(f"'{path}' has no row with an image and a caption; give a CSV with one row for each caption.")
    test = [row for row in rows if row[2] == "test"]
    if test:
        print(f"'{path}' has a column split: its {len(test)} rows of test count, of {len(rows)}")
    return [row[:2] for row in test or rows]


def table_of(path, file, asked, known):
    """The rows (image, caption, split) of an open CSV that have both; asked and known: names of the two columns."""
    table, columns = csv.DictReader(file), []
    names = {name.strip().lower(): name for name in table.fieldnames or () if name}
    for one, usual in zip(asked, known):
        found = [names[name] for name in ((one.strip().lower(),) if one else usual) if name in names]
        if not found:
            raise InputError(f"'{path}' has the columns {', '.join(names) or '(none)'} and none that is called "
                             f"{one or ' or '.join(usual)}; name them by --columns IMAGE,CAPTION.")
        columns.append(found[0])
    cells = ([(row[name] or "").strip() if name else "" for name in (*columns, names.get("split"))] for row in table)
    return [(image, caption, split.lower()) for image, caption, split in cells if image and caption]


def encode(captions, text, model=None):
    """The text features (K, width) of captions. text: training.json's section; model: directory of a text encoder."""
    if text["kind"] == "transformer" and model:
        return transformer_features(captions, text, Path(model))
    if text["kind"] != "bow":
        named = "; or give that model's directory by --text-model" if text["kind"] == "transformer" else ""
        raise InputError(f"Captions cannot be encoded here: the text features of this set come from {text['source']} "
                         f"({text['kind']}). Encode them with that model and give the (captions, {text['width']}) array by "
                         f"--caption-features FILE.npy, one row for each caption, in their order{named}.")
    check = bow_features(["A small red dog, on a beach!"], text["width"], text["seed"])[0]
    if hashlib.sha256(",".join(f"{value + 0.0:.2f}" for value in check).encode()).hexdigest() != text["check"]:
        raise InputError("This numpy draws other random numbers than the one the set was made with, so captions cannot be "
                         "encoded alike; use numpy 1.26 or 2.")
    return bow_features(captions, text["width"], text["seed"])


def murmur3(data, mask=0xFFFFFFFF):
    """MurmurHash3 (32 bits, seed 0) of bytes, as a signed number."""
    def scrambled(k):
        k = k * 0xCC9E2D51 & mask
        return (k << 15 | k >> 17) * 0x1B873593 & mask

    h, whole = 0, len(data) // 4 * 4
    for start in range(0, whole, 4):
        h ^= scrambled(int.from_bytes(data[start:start + 4], "little"))
        h = ((h << 13 | h >> 19) & mask) * 5 + 0xE6546B64 & mask
    h ^= scrambled(int.from_bytes(data[whole:], "little")) ^ len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    h ^= h >> 16
    return h - (1 << 32) if h >> 31 else h


def bow_features(captions, width, seed, bins=2**14):
    """Hashed words and pairs of words, damped and projected at random: (K, width), unit length."""
    numbers = [int.from_bytes(hashlib.sha256(name).digest()[:4], "big") for name in (b"text", b"bow")]
    projection = np.random.default_rng([seed, *numbers]).standard_normal((bins, width), dtype=np.float32)
    features = np.empty((len(captions), width), np.float32)
    for row, caption in enumerate(captions):
        words, counts = re.findall(r"\b\w+\b", caption.lower()), Counter()
        for gram in (*words, *map(" ".join, zip(words, words[1:]))):
            h = murmur3(gram.encode())
            counts[abs(h) % bins] += 1 if h >= 0 else -1
        counts = {bin: math.copysign(1 + math.log(abs(n)), n) for bin, n in counts.items() if n}
        feature = sum(np.float32(n) * projection[bin] for bin, n in counts.items()) if counts else projection[0]
        features[row] = feature / np.linalg.norm(feature)
    return features


def transformer_features(captions, text, directory, batch=64):
    """Features by a BERT or DistilBERT of the Hugging Face library, scaled to unit length."""
    if directory_digest(directory) != text["sha256"]:
        raise InputError(f"'{directory}' is not the text encoder of this set ({text['source']}): the sha256 of its files "
                         "differs.")
    if text["pooling"] not in ("mean", "cls"):
        raise InputError(f"Features of pooling '{text['pooling']}' are not computed here; give them by --caption-features.")
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise InputError("Encoding captions with this set's text encoder needs transformers: pip install transformers."
                         ) from None
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    parts = []
    for start in range(0, len(captions), batch):
        tokens = tokenizer(captions[start:start + batch], padding=True, truncation=True, max_length=text["max_tokens"],
                           return_tensors="pt")
        with torch.no_grad():
            last = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        part = last[:, 0] if text["pooling"] == "cls" else (last * mask).sum(1) / mask.sum(1)
        parts.append(torch.nn.functional.normalize(part, dim=1).numpy())
    return np.concatenate(parts)


def directory_digest(directory):
    """sha256 of the names and sha256s of a model's files, in order, as training.json has it; of one file its own."""
    files = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern)})
    each = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return each[0][1] if len(each) == 1 else hashlib.sha256("".join(f"{n}:{s};" for n, s in each).encode()).hexdigest()
