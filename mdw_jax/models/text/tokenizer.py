"""Tokenizers of Hugging Face model directories."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, BertWordPieceTokenizer, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from mdw_jax.errors import UserError
from mdw_jax.models.weights.hub import read_json

_START, _END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: the English contractions, runs of letters, single digits, runs of anything else but spaces.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _word_piece(directory: Path):
    """BERT's tokenizer from vocab.txt, with those settings of tokenizer_config.json that change tokens."""
    settings = directory / "tokenizer_config.json"
    options = read_json(settings) if settings.is_file() else {}
    return BertWordPieceTokenizer(str(directory / "vocab.txt"), lowercase=options.get("do_lower_case", True),
                                  strip_accents=options.get("strip_accents"),
                                  handle_chinese_chars=options.get("tokenize_chinese_chars", True))


def _clip_bpe(directory: Path):
    """CLIP's tokenizer from vocab.json and merges.txt: byte-level BPE of lower-cased words, "</w>" at their ends."""
    vocabulary = read_json(directory / "vocab.json")
    lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if not {_START, _END} <= set(vocabulary):
        raise UserError(f"'{directory / 'vocab.json'}' has no {_START} and {_END} and is not CLIP's; add the "
                        "model's tokenizer.json.")
    if not all(len(merge) == 2 and "".join(merge) in vocabulary for merge in merges):  # the library would panic
        raise UserError(f"'{directory / 'merges.txt'}' makes tokens that vocab.json beside it lacks; fetch the model "
                        "again.")
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=_END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
                                                 normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (_START, _END)])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(token, vocabulary[token]) for token in (_START, _END)])
    return tokenizer


# The files that a tokenizer needs, and the function that reads them, best first.
_FORMS = ((("tokenizer.json",), lambda directory: Tokenizer.from_file(str(directory / "tokenizer.json"))),
          (("vocab.txt",), _word_piece),
          (("vocab.json", "merges.txt"), _clip_bpe))


def encoded(tokenizer, captions: list[str]) -> list:
    """The encodings of captions by a tokenizer.

    Raises:
        UserError: its files lack what some captions need, which the library finds out here: the token for unknown words.
    """
    try:
        return tokenizer.encode_batch(captions)
    except BaseException as error:  # bare Exceptions, and panics, which are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the tokenizer of the text encoder cannot encode captions ({error}); fetch the model again."
                        ) from None


def read_tokenizer(directory: Path):
    """The tokenizer of `directory`, without padding or truncation.

    From tokenizer.json; or, as BERT's WordPiece, from vocab.txt; or, as CLIP's BPE, from vocab.json and merges.txt.

    Raises:
        UserError: none of them, or a damaged one.
    """
    read = next((read for names, read in _FORMS if all((directory / name).is_file() for name in names)), None)
    if read is None:
        raise UserError(f"the model directory '{directory}' has neither tokenizer.json nor vocab.txt (nor vocab.json with "
                        "merges.txt); add one of them.")
    try:
        tokenizer = read(directory)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"the tokenizer of '{directory}' cannot be read ({error}); fetch the model again.") from error
    # Files saved by sentence-transformers ask for padding to a fixed length, which would cost time and change nothing.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
