"""BERT against outputs of `transformers`, real MiniLM features, and a tiny model folder written here."""

import gzip
import json
import os
import sys
import types
import zlib
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.errors import UserError
from mdw_jax.text.bert import Bert, bert_features, load_bert, params_from_safetensors
from mdw_jax.text.features import text_features
from mdw_jax.text.hub import model_folder, read_tokenizer
from mdw_jax.text.precomputed import precomputed_features

GOLDEN = Path(os.environ.get("MDW_GOLDEN") or Path(__file__).parents[1] / "golden")
FILES = sorted(GOLDEN.glob("bert_*.npz"))

WORDS = "a dog dogs run ##ning runs snow the two man . , red shirt cafe the climb ##s rock".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]
CONFIG = {"model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2,
          "num_attention_heads": 4, "intermediate_size": 24, "hidden_act": "gelu", "max_position_embeddings": 40,
          "type_vocab_size": 2, "layer_norm_eps": 1e-12}
CAPTIONS = ["A dog running .", "two DOGS, the snow", "", "the man climbs the rock " * 3, "Café unknownword",
            "dog " * 60]


def _weight(name, shape):
    """The golden files' rule: a tensor follows from its name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    z = np.asarray(z, np.float32)
    if len(shape) >= 2:
        return z / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * z if name.endswith(".weight") else np.float32(0.1) * z


def _weights(config):
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
    return {name: _weight(name, shape) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """A tiny model as the Hub would give it, with vocab.txt alone."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    save_file(_weights(CONFIG), tmp_path / "model.safetensors")
    return tmp_path


def _close(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    assert np.abs(np.asarray(actual) - expected).max() <= tolerance * np.abs(expected).max()


def test_there_is_a_golden_file():
    assert FILES, f"no bert_*.npz in {GOLDEN}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_equal_those_of_transformers(path):
    with np.load(path) as golden:
        stored = {name: golden[name] for name in golden}
    config = json.loads(str(stored["config"]))
    tensors = {name: _weight(name, shape) for name, shape in json.loads(str(stored["manifest"])).items()}
    model, variables = Bert.from_config(config), {"params": params_from_safetensors(tensors, config)}
    last = jax.jit(model.apply)(variables, stored["input_ids"], stored["attention_mask"], stored.get("token_type_ids"))
    _close(last, stored["last_hidden_state"])
    if "pooler_output" in stored:
        _close(model.apply(variables, last, method="pool"), stored["pooler_output"])


@pytest.mark.slow
def test_minilm_features_equal_the_ones_computed_elsewhere():
    for variable in ("MDW_MINILM", "MDW_FLICKR8K"):
        if variable not in os.environ:
            pytest.skip(f"{variable} is not set: MDW_MINILM is an all-MiniLM-L6-v2 folder, MDW_FLICKR8K a folder with "
                        "dataset_flickr8k.json.gz and minilm_l6_caption_features.int8.npz")
    flickr = Path(os.environ["MDW_FLICKR8K"])
    images = json.loads(gzip.decompress((flickr / "dataset_flickr8k.json.gz").read_bytes()))["images"]
    raw = {sentence["sentid"]: sentence["raw"] for image in images for sentence in image["sentences"]}
    ids = np.random.default_rng(0).choice(sorted(raw), 500, replace=False)
    expected = precomputed_features(flickr / "minilm_l6_caption_features.int8.npz", ids)
    actual = bert_features([raw[i] for i in ids], os.environ["MDW_MINILM"])
    cosines = (actual * expected).sum(1) / np.linalg.norm(expected, axis=1)
    print(f"cosine: min {cosines.min():.6f}, mean {cosines.mean():.6f}")
    assert cosines.min() >= 0.999


def test_parameters_are_the_ones_the_module_would_make():
    model = Bert.from_config(CONFIG)
    ids = np.ones((1, 4), np.int32)
    made = jax.eval_shape(lambda key: model.init(key, ids, ids, method=lambda m, *args: m.pool(m(*args))),
                          jax.random.key(0))["params"]
    read = params_from_safetensors(_weights(CONFIG), CONFIG)
    assert jax.tree.map(lambda a: a.shape, dict(made)) == jax.tree.map(lambda a: a.shape, read)


def test_names_may_be_prefixed_or_old_and_heads_and_the_pooler_do_not_matter():
    weights = _weights(CONFIG)
    old = {f"bert.{name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')}": w
           for name, w in weights.items() if not name.startswith("pooler.")}
    old |= {"cls.predictions.bias": np.zeros(3, np.float32), "bert.embeddings.position_ids": np.arange(40)[None]}
    read, expected = params_from_safetensors(old, CONFIG), params_from_safetensors(weights, CONFIG)
    assert "pooler" in expected and "pooler" not in read
    expected.pop("pooler")
    jax.tree.map(np.testing.assert_array_equal, read, expected)


def test_weights_that_do_not_fit_are_named():
    weights = _weights(CONFIG)
    del weights["encoder.layer.1.output.dense.bias"]
    weights["embeddings.LayerNorm.bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError, match=r"2 tensors .*LayerNorm.bias has shape \(5,\), not \(16,\); .*dense.bias is"):
        params_from_safetensors(weights, CONFIG)
    with pytest.raises(UserError, match="pooler.dense.bias is missing"):
        params_from_safetensors({n: w for n, w in _weights(CONFIG).items() if n != "pooler.dense.bias"}, CONFIG)


@pytest.mark.parametrize("change, message", [
    ({"model_type": "distilbert"}, "'distilbert' model"), ({"hidden_act": "swishy"}, "activation 'swishy'"),
    ({"hidden_size": "16"}, "hidden_size = '16'"), ({"num_attention_heads": 3}, "3 attention heads do not divide"),
    ({"position_embedding_type": "relative_key"}, "'relative_key' positions")])
def test_configurations_that_are_no_bert_of_ours_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Bert.from_config(CONFIG | change)


def _by_hand(folder, tokens):
    """The last hidden state of one caption alone and unpadded, from its tokens: (L, hidden)."""
    model, params, _ = load_bert(folder)
    ids = np.array([[VOCABULARY.index(token) for token in ("[CLS]", *tokens.split(), "[SEP]")]])
    return np.asarray(jax.jit(model.apply)({"params": params}, ids, np.ones_like(ids)), np.float64)[0]


def test_features_are_those_of_each_caption_alone(folder):
    tokens = {"A dog running .": "a dog run ##ning .", "Dog ,SNOW": "dog , snow", "": ""}
    last = [_by_hand(folder, words) for words in tokens.values()]
    for pooling, expected in (("cls", [x[0] for x in last]), ("mean", [x.mean(0) for x in last])):
        plain = bert_features([*CAPTIONS, *tokens], folder, pooling, 16, normalize=False, batch=4)[-3:]
        _close(plain, np.array(expected), 1e-5)
        unit = bert_features([*CAPTIONS, *tokens], folder, pooling, 16, batch=4)[-3:]
        _close(unit, np.array([x / np.linalg.norm(x) for x in expected]), 1e-5)


def test_features_do_not_depend_on_batches_padding_or_order(folder):
    features = bert_features(CAPTIONS * 2, folder, max_tokens=40, batch=4)
    assert features.shape == (12, 16) and features.dtype == np.float32
    np.testing.assert_array_equal(features[:6], features[6:])
    for k, caption in enumerate(CAPTIONS):
        _close(bert_features([caption], folder, max_tokens=40, batch=3)[0], features[k], 1e-5)
    assert bert_features([], folder, max_tokens=40).shape == (0, 16)


def test_captions_are_cut_to_max_tokens(folder):
    long, short = bert_features(["dog snow " * 30, "dog snow dog"], folder, max_tokens=5, normalize=False)
    np.testing.assert_array_equal(long, short)
    _close(long, _by_hand(folder, "dog snow dog").mean(0), 1e-5)
    for wrong in (2, 41):
        with pytest.raises(UserError, match=f"max_tokens is {wrong}"):
            bert_features(CAPTIONS, folder, max_tokens=wrong)
    with pytest.raises(UserError, match="unknown pooling 'max'"):
        bert_features(CAPTIONS, folder, pooling="max")


def test_a_tokenizer_file_gives_the_same_features_as_its_vocabulary_whatever_it_pads_to(folder):
    expected = bert_features(CAPTIONS, folder, max_tokens=30)
    tokenizer = read_tokenizer(folder)
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    assert len(read_tokenizer(folder).encode("dog " * 20).ids) == 22
    np.testing.assert_array_equal(bert_features(CAPTIONS, folder, max_tokens=30), expected)


@pytest.mark.parametrize("lower", [True, False])
def test_tokens_equal_those_of_transformers(folder, lower):
    transformers = pytest.importorskip("transformers")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    ours = [encoding.ids for encoding in read_tokenizer(folder).encode_batch(CAPTIONS)]
    theirs = transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=lower)
    assert ours == theirs(CAPTIONS)["input_ids"]


def test_half_precision_weights_are_read_as_float32(folder):
    expected = bert_features(CAPTIONS, folder, max_tokens=16)
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in _weights(CONFIG).items()}
    save_file(half, folder / "model.safetensors")
    features = bert_features(CAPTIONS, folder, max_tokens=16)
    assert features.dtype == np.float32
    _close(features, expected, 0.05)


def test_model_folders_with_faults_are_refused(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, "extra"]))
    with pytest.raises(UserError, match=f"knows token {len(VOCABULARY)} but the model only {len(VOCABULARY)}"):
        load_bert(folder)
    (folder / "vocab.txt").write_text("dog\n")
    with pytest.raises(UserError, match="tokenizer of .* cannot be read"):
        load_bert(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    weights.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="model.safetensors' cannot be read"):
        load_bert(folder)
    save_file(_weights(CONFIG) | {"embeddings.LayerNorm.bias": np.full(16, np.nan, np.float32)}, weights)
    with pytest.raises(UserError, match="NaN or infinite features"):
        bert_features(["dog"], folder, max_tokens=16)
    weights.unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        load_bert(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_bert(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        load_bert(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.txt"):
        read_tokenizer(folder)


def test_other_names_are_fetched_from_the_hub_without_pickles(folder, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert model_folder("someone/some-bert") == folder and asked[0][0] == "someone/some-bert"
    assert {Path(pattern).suffix for pattern in asked[0][1]} == {".json", ".safetensors", ".txt"}
    assert model_folder(folder) == folder and len(asked) == 1

    def offline(name, allow_patterns):
        raise ConnectionError("no\nnetwork")

    hub.snapshot_download = offline
    with pytest.raises(UserError, match="neither a folder nor a model .*no network"):
        load_bert("someone/some-bert")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'mdw-jax\[hub\]'"):
        load_bert("someone/some-bert")


def test_text_features_of_bert_are_keyed_by_weights_pooling_and_truncation(folder, tmp_path):
    split = Split(np.zeros((2, 2, 2, 3), np.uint8), ("a dog", "two dogs"), np.arange(2), np.arange(2))
    pairs = Pairs("tiny", split, split, split)
    features = text_features(pairs, "bert", path=folder, max_tokens=16, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(features.val, bert_features(split.captions, folder, max_tokens=16))
    keys = {features.key, text_features(pairs, "bert", path=folder, max_tokens=17).key,
            text_features(pairs, "bert", path=folder, max_tokens=16, pooling="cls").key}
    assert text_features(pairs, "bert", path=folder, max_tokens=16, seed=1, dim=5).key == features.key
    save_file(_weights(CONFIG) | {"embeddings.LayerNorm.bias": np.ones(16, np.float32)}, folder / "model.safetensors")
    changed = text_features(pairs, "bert", path=folder, max_tokens=16, cache_dir=tmp_path / "cache")
    assert len(keys | {changed.key}) == 4 and not np.allclose(changed.val, features.val)
