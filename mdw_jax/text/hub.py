"""Where a text encoder's files come from: a local folder, or the Hugging Face Hub."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file  # reads bfloat16, which the numpy loader does not
from tokenizers import BertWordPieceTokenizer, Tokenizer

from mdw_jax.errors import UserError

# Named one by one: no pickled weights ever, and none of the other formats some repositories also hold.
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def model_folder(source) -> Path:
    """The folder of `source`: itself if it is one, else the Hub model of that name, downloaded or from the Hub's cache.

    Raises:
        UserError: not a folder, and the Hub client is not installed, cannot be reached, or has no such model.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        import huggingface_hub  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError(f"'{source}' is not a folder, and fetching a model of that name needs the Hugging Face client; "
                        "pip install 'mdw-jax[hub]' or give a local model folder.") from error
    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:  # offline, unknown or gated; not a possible name
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{source}' is neither a folder nor a model that the Hugging Face Hub gave us ({reason}); "
                        "check the name and the connection, or give a local model folder.") from error


def folder_digest(folder) -> str:
    """sha256 (hex) over the model's configuration, weights and tokenizer files: what its features depend on."""
    sha = hashlib.sha256()
    for name in _FILES:
        path = Path(folder) / name
        if path.is_file():
            with path.open("rb") as file:
                sha.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return sha.hexdigest()


def read_json(path: Path) -> dict:
    """A JSON object from `path`; UserError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"the model folder '{path.parent}' has no {path.name}; give a Hugging Face model "
                        "folder.") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); fetch the model again.") from error
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is not a JSON object; fetch the model again.")
    return value


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of `folder`/model.safetensors by name; UserError if missing or damaged."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"the model folder '{folder}' has no model.safetensors (pickled weights are not read); "
                        "convert its weights to safetensors.")
    try:
        return {name: np.asarray(tensor) for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): it is damaged or truncated; fetch the model "
                        "again.") from error


def read_tokenizer(folder: Path):
    """The tokenizer of `folder`, without padding or truncation: tokenizer.json, or a WordPiece one from vocab.txt.

    Raises:
        UserError: neither file, or a damaged one.
    """
    whole, vocabulary, settings = (folder / name for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
    if not whole.is_file() and not vocabulary.is_file():
        raise UserError(f"the model folder '{folder}' has neither tokenizer.json nor vocab.txt; add one of them.")
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            said = read_json(settings) if settings.is_file() else {}
            tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=said.get("do_lower_case", True),
                                               strip_accents=said.get("strip_accents"),
                                               handle_chinese_chars=said.get("tokenize_chinese_chars", True))
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"the tokenizer of '{folder}' cannot be read ({error}); fetch the model again.") from error
    # Files saved by sentence-transformers ask for padding to a fixed length, which would cost and not change anything.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
