"""Sources of weights: files, directories, shards, a Hub (a server started here), and what is in them."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from mdw_jax.errors import UserError
from mdw_jax.models.weights import hub

TENSORS = {"stem.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "stem.bias": np.ones(3, ml_dtypes.bfloat16),
           "half": np.full((2, 2), 0.5, np.float16), "steps": np.array(7)}
PRETRAINED = {"tag": "ra2_in1k", "input_size": [3, 224, 224], "mean": [0.485, 0.456, 0.406],
              "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "crop_pct": 0.9}
TIMM = {"architecture": "nfnet_l0", "num_classes": 1000, "pretrained_cfg": PRETRAINED}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TIMM))
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def _shard(folder):
    """Turns the folder's weights into two shards and their index."""
    (folder / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": ["half", "steps"],
              "model-00002-of-00002.safetensors": ["stem.weight", "stem.bias"]}
    for file, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _same(actual, expected):
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and actual[name].shape == tensor.shape
        np.testing.assert_array_equal(actual[name], tensor)


def test_tensors_are_read_as_stored_from_a_folder_a_file_and_shards(folder):
    _same(hub.read_tensors(folder), TENSORS)
    _same(hub.read_tensors(str(folder / "model.safetensors")), TENSORS)
    _shard(folder)
    _same(hub.read_tensors(folder), TENSORS)


def test_shards_that_are_missing_or_elsewhere_are_refused(folder):
    _shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 shards .*\(model-00002-of-00002.safetensors\)"):
        hub.read_tensors(folder)
    for weight_map in ({"half": "../model.safetensors"}, None, ["half"], {"half": 3}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="does not map tensors to files beside it"):
            hub.read_tensors(folder)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_pickles_are_refused_with_the_way_out(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    for _ in range(2):  # there or not
        for entry in (hub.fetch, hub.read_tensors, hub.describe_weights, hub.model_directory):
            with pytest.raises(UserError, match="pickled weights, which are not read; convert .*safetensors"):
                entry(path)
        path.write_bytes(b"\x80\x04.")


def test_files_and_folders_that_are_no_weights_are_refused(folder, tmp_path):
    weights = folder / "model.safetensors"
    with pytest.raises(UserError, match="no weights file .*missing.safetensors"):
        hub.fetch(tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match="not a .safetensors file"):
        hub.fetch(folder / "config.json")
    with pytest.raises(UserError, match="is a single file"):
        hub.model_directory(weights)
    whole = weights.read_bytes()
    for damaged in (whole[:-3], whole[:20], b""):
        weights.write_bytes(damaged)
        for entry in (hub.read_tensors, hub.describe_weights):
            with pytest.raises(UserError, match="model.safetensors' cannot be read .*damaged or truncated"):
                entry(folder)
    header = json.dumps({"x": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(UserError, match="holds x as F8_E5M2, which cannot be read"):
        hub.read_tensors(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no model.safetensors .pickled weights are not read"):
        hub.describe_weights(folder)


def test_digests_follow_contents_and_not_places(folder, tmp_path):
    weights = folder / "model.safetensors"
    assert hub.files_digest([weights]) == hashlib.sha256(weights.read_bytes()).hexdigest()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("not part of it")
    digests = {hub.directory_digest(folder), hub.directory_digest(copy)}
    assert len(digests) == 1
    (copy / "merges.txt").write_text("a b")
    digests.add(hub.directory_digest(copy))
    _shard(copy)
    digests.add(hub.directory_digest(copy))
    shard = copy / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert len(digests | {hub.directory_digest(copy)}) == 4


def test_timm_configurations_of_today_and_of_old(folder):
    assert hub.timm_config(folder) == TIMM
    flat = {"architecture": "vit_tiny_patch16_224", **PRETRAINED}
    (folder / "config.json").write_text(json.dumps(flat))
    old = hub.timm_config(folder)
    assert old["architecture"] == "vit_tiny_patch16_224" and old["pretrained_cfg"]["std"] == PRETRAINED["std"]


@pytest.mark.parametrize("config", [{"model_type": "bert"}, TIMM | {"architecture": None}, TIMM | {"pretrained_cfg": 3},
                                    TIMM | {"pretrained_cfg": PRETRAINED | {"mean": [0.5]}},
                                    TIMM | {"pretrained_cfg": PRETRAINED | {"std": [0.2, 0.2, "0.2"]}},
                                    TIMM | {"pretrained_cfg": PRETRAINED | {"input_size": [3, 224.5, 224]}}])
def test_configurations_that_are_not_timms_are_refused(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not give the architecture, mean, std and input_size of a timm model"):
        hub.timm_config(folder)


def test_weights_are_described_without_reading_them(folder):
    weights = folder / "model.safetensors"
    expected = {"kind": "timm", "architecture": "nfnet_l0", "tensors": 4, "parameters": 12 + 3 + 4,
                "bytes": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
                "path": str(folder)}
    assert hub.describe_weights(folder) == expected
    assert hub.describe_weights(weights) == expected | {"kind": "plain", "architecture": None, "path": str(weights)}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    _shard(folder)
    shards = sorted(folder.glob("model-*"))
    assert hub.describe_weights(folder) == expected | {
        "kind": "transformers", "architecture": "clip", "bytes": sum(path.stat().st_size for path in shards),
        "sha256": hub.files_digest(shards)}
    (folder / "config.json").unlink()
    assert hub.describe_weights(folder)["kind"] == "plain"


def test_other_names_are_fetched_from_the_hub_without_pickles(folder, monkeypatch):
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(folder)

    client = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert hub.model_directory("someone/some-bert") == folder and asked[-1][:2] == ("someone/some-bert", None)
    assert {Path(pattern).suffix for pattern in asked[-1][2]} == {".json", ".safetensors", ".txt"}
    assert hub.fetch("timm/nfnet_l0.ra2_in1k@v1.0") == folder
    assert asked[-1] == ("timm/nfnet_l0.ra2_in1k", "v1.0", list(hub.WEIGHT_FILES))
    assert hub.model_directory(folder) == folder and len(asked) == 2

    def offline(name, **_):
        raise ConnectionError("no\nnetwork")

    client.snapshot_download = offline
    with pytest.raises(UserError, match="neither a directory nor a model .*no network"):
        hub.fetch("someone/some-bert")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and 'someone/some-bert' is neither"):
        hub.fetch("someone/some-bert")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'mdw-jax\[hub\]'"):
        hub.fetch("someone/some-bert")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's protocol as its client asks for: one repository, "someone/tiny", with one tag, "v1"."""

    def __init__(self, *args, files, asked):
        self.files, self.asked = files, asked
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def _answer(self, body):
        path = self.path.split("?")[0]
        api = "/api/models/someone/tiny"
        resolve = f"/someone/tiny/resolve/{COMMIT}/"
        headers = {}
        if path in (api, f"{api}/revision/main", f"{api}/revision/v1"):
            siblings = [{"rfilename": name} for name in self.files]
            data = json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(f"{api}/tree/"):
            data = json.dumps([{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                               for name, data in self.files.items()]).encode()
        elif path.startswith(resolve) and path.removeprefix(resolve) in self.files:
            name = path.removeprefix(resolve)
            data = self.files[name]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.asked.add(name)
        else:
            known = path.startswith(api)
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_GET(self):
        self._answer(True)

    def do_HEAD(self):
        self._answer(False)


SCRIPT = """
import sys
from mdw_jax.errors import UserError
from mdw_jax.models.weights.hub import describe_weights
for source in sys.argv[1:]:
    try:
        print(describe_weights(source))
    except UserError as error:
        print(error)
"""


def test_the_real_client_downloads_caches_and_stays_offline_when_told(tmp_path):
    pytest.importorskip("huggingface_hub")
    files = {"config.json": json.dumps(TIMM).encode(), "model.safetensors": save(TENSORS), "README.md": b"hello",
             "pytorch_model.bin": b"\x80\x04."}
    asked = set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, files=files, asked=asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = Path(hub.__file__).parents[3]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in
             name.lower()}
    clean |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
              "PYTHONPATH": str(root), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(*sources, **environment):
        done = subprocess.run([sys.executable, "-c", SCRIPT, *sources], env=clean | environment, cwd=tmp_path,
                              text=True, capture_output=True, check=True, timeout=120)
        return done.stdout.splitlines()

    try:
        found, unknown, revision = run("someone/tiny@v1", "someone/other", "someone/tiny@v9")
    finally:
        server.shutdown()
        server.server_close()
    assert "'architecture': 'nfnet_l0', 'tensors': 4, 'parameters': 19" in found and str(tmp_path) in found
    assert asked == {"config.json", "model.safetensors"}
    assert "'someone/other' is neither a directory nor a model that the Hugging Face Hub provides" in unknown
    assert "check the name, the revision" in revision
    cached, missing = run("someone/tiny@v1", "someone/other", HF_HUB_OFFLINE="1")
    assert cached == found
    assert missing.startswith("HF_HUB_OFFLINE is set, and 'someone/other' is neither a directory nor complete in")
