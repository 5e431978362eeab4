"""Tokenizers of model folders, from each of the forms they come in."""

import json

import pytest
from tiny_models import CAPTIONS, CLIP_END, CLIP_VOCABULARY, MERGES, write_model

from mdw_jax.errors import UserError
from mdw_jax.models.text.encoder import transformer_features
from mdw_jax.models.text.tokenizer import read_tokenizer

CLIP_CAPTIONS = [*CAPTIONS, "  The\tdog's 2 dogs!!! ", "café", "don't", "<|endoftext|> a dog", "the... dog 1234"]


def test_a_tokenizer_file_gives_the_same_features_as_its_vocabulary_whatever_it_pads_to(tmp_path):
    folder = write_model(tmp_path, "bert")
    expected = transformer_features(CAPTIONS, folder, max_tokens=30)
    tokenizer = read_tokenizer(folder)
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    assert len(read_tokenizer(folder).encode("dog " * 20).ids) == 22
    assert (transformer_features(CAPTIONS, folder, max_tokens=30) == expected).all()


@pytest.mark.parametrize("lower", [True, False])
def test_word_pieces_equal_those_of_transformers(tmp_path, lower):
    transformers = pytest.importorskip("transformers")
    folder = write_model(tmp_path, "bert")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    ours = [encoding.ids for encoding in read_tokenizer(folder).encode_batch(CAPTIONS)]
    theirs = transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=lower)
    assert ours == theirs(CAPTIONS)["input_ids"]


def test_clip_tokens_are_known_ones(tmp_path):
    tokenizer = read_tokenizer(write_model(tmp_path, "clip"))
    for caption, tokens in {"The  DOG": "the</w> dog</w>", "dogs'll": "do g s</w> ' l l</w>", "12": "1</w> 2</w>",
                            "Cafe\u0301!,": "c a f Ã©</w> ! ,</w>", "": ""}.items():
        found = [CLIP_VOCABULARY[token] for token in tokens.split()]
        ids = tokenizer.encode(caption).ids
        assert ids[0] == CLIP_END - 1 and ids[-1] == CLIP_END
        assert ids[1:-1] == found, tokenizer.encode(caption).tokens


def test_clip_tokens_equal_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write_model(tmp_path, "clip")
    theirs = transformers.CLIPTokenizer(vocab=CLIP_VOCABULARY, merges=[tuple(merge.split()) for merge in MERGES])
    assert [e.ids for e in read_tokenizer(folder).encode_batch(CLIP_CAPTIONS)] == theirs(CLIP_CAPTIONS)["input_ids"]


def test_folders_without_a_tokenizer_are_refused(tmp_path):
    folder = write_model(tmp_path, "clip")
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
    with pytest.raises(UserError, match="merges.txt' makes tokens that vocab.json beside it lacks"):
        read_tokenizer(folder)
    (folder / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(UserError, match="no <.startoftext.> and"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer of .* cannot be read"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.txt"):
        read_tokenizer(folder)
