"""`TextEncoder` and caption features, on tiny models of every kind and on real MiniLM weights."""

import functools
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from goldens import assert_close
from safetensors.numpy import save_file
from tiny_models import BERT, CAPTIONS, CLIP_END, CLIP_VOCABULARY, VOCABULARY, bert_weights, write_model

from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.errors import UserError
from mdw_jax.models.text.encoder import load_text_encoder, transformer_features
from mdw_jax.models.text.features import text_features
from mdw_jax.models.text.precomputed import precomputed_features

POOLINGS = {"bert": "mean", "distilbert": "cls", "clip": "native"}


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path, "bert")


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
    captions = [raw[i] for i in ids]
    encoder, params, tokenize = load_text_encoder(os.environ["MDW_MINILM"], "mean", 64)
    encode = jax.jit(lambda params, tokens, mask: encoder.encode(params, encoder.embed(params, tokens), mask))
    actual = np.asarray(encode(params, *tokenize(captions)))
    cosines = (actual * expected).sum(1) / np.linalg.norm(expected, axis=1)
    transformer_features(captions, os.environ["MDW_MINILM"])  # compiles
    start = time.perf_counter()
    bucketed = transformer_features(captions, os.environ["MDW_MINILM"])
    print(f"cosine: min {cosines.min():.6f}, mean {cosines.mean():.6f}; "
          f"{len(captions) / (time.perf_counter() - start):.0f} captions/s, loading included")
    assert cosines.min() >= 0.9999  # the features stored are rounded to 8 bits
    assert_close(bucketed, actual, 1e-5)


def test_captions_are_encoded_in_chunks_on_all_devices(longer_folder, tmp_path):
    captions = [" ".join(["dog", "snow", "a", "running"][: 1 + n % 4] * (1 + n % 5)) + "." * (n % 3) for n in range(90)]
    expected = transformer_features(captions, longer_folder)
    program = (
        "import json, sys\nimport jax\nimport numpy as np\nfrom mdw_jax.models.text import encoder\n"
        "encoder.chunk_size = lambda: 32\n"
        "np.save(sys.argv[2], encoder.transformer_features(json.loads(sys.argv[3]), sys.argv[1], batch=8))\n"
        "assert len(jax.devices()) == 4")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
                   "PYTHONPATH": os.pathsep.join(sys.path)}
    out = tmp_path / "features.npy"
    subprocess.run([sys.executable, "-c", program, longer_folder, out, json.dumps(captions)], env=environment, check=True)
    assert_close(np.load(out), expected, 1e-6)


@pytest.mark.parametrize("kind, pooling", POOLINGS.items())
def test_encode_of_embed_is_the_feature_and_words_enter_by_embed_alone(tmp_path, kind, pooling):
    folder = write_model(tmp_path, kind)
    encoder, params, tokenize = load_text_encoder(folder, pooling, 16)
    ids, mask = tokenize(CAPTIONS)
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == mask.shape == (6, 16)
    words = params.pop("word_embeddings")
    embedded = encoder.embed({"word_embeddings": words}, ids)
    np.testing.assert_array_equal(embedded, words["embedding"][ids])
    features = jax.jit(encoder.encode)(params, embedded, mask)
    assert features.shape == (6, encoder.width) and encoder.width == (48 if "clip" in kind else embedded.shape[2])
    assert_close(np.linalg.norm(features, axis=1), np.ones(6), 1e-6)
    assert_close(transformer_features(CAPTIONS, folder, pooling, 16), features, 1e-5)
    longer = np.pad(ids, ((0, 0), (0, 5)), constant_values=3), np.pad(mask, ((0, 0), (0, 5)))
    assert_close(jax.jit(encoder.encode)(params, words["embedding"][longer[0]], longer[1]), features, 1e-5)


@pytest.mark.parametrize("kind, pooling", POOLINGS.items())
def test_features_are_computed_in_the_type_of_what_is_passed(tmp_path, kind, pooling):
    encoder, params, tokenize = load_text_encoder(write_model(tmp_path, kind), pooling, 16)
    assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    ids, mask = tokenize(CAPTIONS)
    direction = np.linspace(-1, 1, encoder.width, dtype=np.float32)

    def value(params):
        features = encoder.encode(params, encoder.embed(params, ids), mask)
        return (features @ direction).sum(), features

    half = jax.jit(value)(jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params))[1]
    assert half.dtype == jnp.bfloat16
    (_, whole), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    assert_close(half.astype(np.float32), whole, 0.05)
    for path, g in jax.tree.leaves_with_path(gradient):
        moves_scores_alike = jax.tree_util.keystr(path).endswith("['key']['bias']")
        assert np.isfinite(g).all() and (moves_scores_alike or np.any(g)), path


def test_a_clip_caption_ends_where_its_mask_does(tmp_path):
    folder = write_model(tmp_path, "clip")
    encoder, params, tokenize = load_text_encoder(folder, "native", 12)
    captions = ["dog the", "dog the <|endoftext|> an", "dog " * 20]
    ids, mask = tokenize(captions)
    dog, the = (CLIP_VOCABULARY[word] for word in ("dog</w>", "the</w>"))
    assert ids[0, :4].tolist() == [CLIP_END - 1, dog, the, CLIP_END] and ids.shape == (3, 12)
    assert mask.sum(1).tolist() == [4, 4, 12] and ids[2].tolist() == [CLIP_END - 1, *[dog] * 10, CLIP_END]
    features = transformer_features(captions, folder, "native", 12)
    assert_close(features[1], features[0], 1e-6)
    tower = tmp_path / "tower"  # the same model without its image half
    tower.mkdir()
    np.testing.assert_array_equal(transformer_features(captions, write_model(tower, "clip_text_model"), "native", 12),
                                  features)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(transformer_features(captions, folder, "native", 12), features)
    config["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not put the model's special tokens around captions"):
        load_text_encoder(folder, "native", 12)


def _by_hand(folder, tokens):
    """The last hidden state of one caption alone and unpadded, from its tokens: (L, hidden)."""
    encoder, params, _ = load_text_encoder(folder)
    ids = np.array([[VOCABULARY.index(token) for token in ("[CLS]", *tokens.split(), "[SEP]")]])
    last = jax.jit(encoder.model.apply)({"params": params}, encoder.embed(params, ids), np.ones_like(ids))
    return np.asarray(last, np.float64)[0]


@pytest.fixture
def longer_folder(tmp_path):
    """A BERT that takes the default of 64 tokens."""
    config = BERT | {"max_position_embeddings": 64}
    write_model(tmp_path, "bert")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(bert_weights(config), tmp_path / "model.safetensors")
    return tmp_path


def test_features_are_those_of_each_caption_alone(longer_folder):
    features = functools.partial(transformer_features, source=longer_folder, max_tokens=16, batch=4)
    tokens = {"A dog running .": "a dog run ##ning .", "Dog ,SNOW": "dog , snow", "": ""}
    last = [_by_hand(longer_folder, words) for words in tokens.values()]
    pooler = load_text_encoder(longer_folder, "native")[1]["pooler"]
    native = [np.tanh(x[0] @ pooler["kernel"] + pooler["bias"]) for x in last]
    for pooling, expected in (("cls", [x[0] for x in last]), ("mean", [x.mean(0) for x in last]), ("native", native)):
        plain = features([*CAPTIONS, *tokens], pooling=pooling, unit=False)[-3:]
        assert_close(plain, np.array(expected), 1e-5)
    unit = features([*CAPTIONS, *tokens], pooling="mean")[-3:]
    assert_close(unit, np.array([x.mean(0) / np.linalg.norm(x.mean(0)) for x in last]), 1e-5)


@pytest.mark.parametrize("kind, pooling", POOLINGS.items())
def test_features_do_not_depend_on_batches_padding_or_order(tmp_path, kind, pooling):
    longest = 24 if kind == "bert" else 16  # two padded lengths, or one
    features_of = functools.partial(transformer_features, source=write_model(tmp_path, kind), pooling=pooling,
                                    max_tokens=longest)
    features = features_of(CAPTIONS * 2, batch=4)
    assert features.shape == (12, features.shape[1]) and features.dtype == np.float32
    np.testing.assert_array_equal(features[:6], features[6:])
    for k, caption in enumerate(CAPTIONS):
        assert_close(features_of([caption], batch=3)[0], features[k], 1e-5)
    assert features_of([]).shape == (0, features.shape[1])


def test_captions_are_cut_to_max_tokens(longer_folder):
    long, short = transformer_features(["dog snow " * 30, "dog snow dog"], longer_folder, max_tokens=5, unit=False)
    np.testing.assert_array_equal(long, short)
    assert_close(long, _by_hand(longer_folder, "dog snow dog").mean(0), 1e-5)
    for wrong in (2, 65):
        with pytest.raises(UserError, match=f"max_tokens is {wrong}"):
            transformer_features(CAPTIONS, longer_folder, max_tokens=wrong)


@pytest.mark.parametrize("kind, pooling, message", [
    ("bert", "max", "unknown pooling 'max' .* mean, cls, native"),
    ("distilbert", "native", "'distilbert' model, which has no 'native' pooling; set the pooling to mean or cls"),
    ("clip", "mean", "'clip' model, which has no 'mean' pooling; set the pooling to native"),
    ("clip_text_model", "cls", "no 'cls' pooling; set the pooling to native")])
def test_poolings_a_model_does_not_have_are_refused(tmp_path, kind, pooling, message):
    with pytest.raises(UserError, match=message):
        load_text_encoder(write_model(tmp_path, kind), pooling, 16)


def test_berts_pooler_is_loaded_where_it_is_used(folder):
    assert "pooler" in load_text_encoder(folder, "native", 16)[1]
    assert "pooler" not in load_text_encoder(folder, "mean", 16)[1]
    save_file({n: w for n, w in bert_weights(BERT).items() if "pooler" not in n}, folder / "model.safetensors")
    load_text_encoder(folder, "mean", 16)
    with pytest.raises(UserError, match="no weights for BERT's pooler"):
        load_text_encoder(folder, "native", 16)


def test_half_precision_weights_are_read_as_float32(folder):
    expected = transformer_features(CAPTIONS, folder, max_tokens=16)
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in bert_weights(BERT).items()}
    save_file(half, folder / "model.safetensors")
    features = transformer_features(CAPTIONS, folder, max_tokens=16)
    assert features.dtype == np.float32
    assert_close(features, expected, 0.05)


def test_model_folders_with_faults_are_refused(folder):
    weights = folder / "model.safetensors"
    load = functools.partial(load_text_encoder, folder, max_tokens=16)
    whole = weights.read_bytes()
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, "extra"]))
    with pytest.raises(UserError, match=f"knows token {len(VOCABULARY)} but the model only {len(VOCABULARY)}"):
        load()
    (folder / "vocab.txt").write_text("dog\n")
    with pytest.raises(UserError, match="tokenizer of .* cannot be read"):
        load()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    weights.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="model.safetensors' cannot be read"):
        load()
    save_file(bert_weights(BERT) | {"embeddings.LayerNorm.bias": np.full(16, np.nan, np.float32)}, weights)
    with pytest.raises(UserError, match="LayerNorm.bias holds NaN or infinite numbers"):
        transformer_features(["dog"], folder, max_tokens=16)
    weights.unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        load()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="is a 't5' model; a text encoder is one of bert, distilbert, clip"):
        load()
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON object"):
        load()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        load()


def test_text_features_are_keyed_by_weights_pooling_and_truncation(folder, tmp_path):
    split = Split(np.zeros((2, 2, 2, 3), np.uint8), ("a dog", "two dogs"), np.arange(2), np.arange(2))
    features_of = functools.partial(text_features, Pairs("tiny", split, split, split), "transformer", path=folder)
    features = features_of(max_tokens=16, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(features.val, transformer_features(split.captions, folder, max_tokens=16))
    keys = {features.key, features_of(max_tokens=17).key, features_of(max_tokens=16, pooling="cls").key}
    assert features_of(max_tokens=16, seed=1, dim=5).key == features.key
    changed = bert_weights(BERT) | {"embeddings.LayerNorm.bias": np.ones(16, np.float32)}
    save_file(changed, folder / "model.safetensors")
    again = features_of(max_tokens=16, cache_dir=tmp_path / "cache")
    assert len(keys | {again.key}) == 4 and not np.allclose(again.val, features.val)


def test_a_vocabulary_without_the_token_for_unknown_words_is_one_sentence(folder):
    """The library finds it out when it meets such a word."""
    lines = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join("[unk]" if line == "[UNK]" else line for line in lines) + "\n")
    _, _, tokenize = load_text_encoder(str(folder), max_tokens=16)
    with pytest.raises(UserError, match="cannot encode captions .*UNK.*fetch the model again"):
        tokenize(["xylophones"])
