"""The run folder, and what a run was made with."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mdw_jax.errors import UserError

_PACKAGES = ("mdw-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


def run_folder(config: ConfigDict) -> Path:
    """The run folder, made if need be. Raises UserError if it cannot be."""
    folder = Path(config.run.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder '{folder}' ({error.strerror}); set run.dir elsewhere.") from None
    return folder


def environment() -> dict:
    """Versions, devices and the commit this run was made with (None outside a checkout)."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": versions,
            "devices": [str(device) for device in jax.devices()], "commit": _commit()}


def _commit() -> str | None:
    """The commit of this package, where it is a checkout; not that of a repository which merely encloses it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        ours = subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, timeout=10)
        if ours.returncode:
            return None
        return subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True,
                              timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
