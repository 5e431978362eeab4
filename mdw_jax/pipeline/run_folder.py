"""The run directory, and the environment that a run was made in."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mdw_jax.errors import UserError

_PACKAGES = ("mdw-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


def run_folder(config: ConfigDict) -> Path:
    """The run directory of a config, made if it is not there yet.

    Raises:
        UserError: it cannot be made.
    """
    directory = Path(config.run.dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run directory '{directory}' ({error.strerror}); set run.dir elsewhere."
                        ) from None
    return directory


def environment() -> dict:
    """Versions, devices and the commit (None outside a checkout) that a run is made with."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": versions,
            "devices": [str(device) for device in jax.devices()], "commit": _commit()}


def _commit() -> str | None:
    """The commit of this package where it is a checkout, not that of a repository that only encloses it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True,
                                 timeout=10)
        if tracked.returncode:
            return None
        return subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True,
                              timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
