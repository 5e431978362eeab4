"""Weights that travel with the package (README.md beside this file: origin, license), by name."""

from pathlib import Path

SHIPPED = {"mobilenet_v2": "mobilenet_v2_1.0_224_quant.q8.npz", "mobilenet_v1_0.25": "mobilenet_v1_0.25_128_quant.q8.npz"}


def shipped_or_local(source: str) -> Path:
    """The file of `model.weights`: the package's own where it is a name in `SHIPPED`, else the path itself."""
    return Path(__file__).parent / SHIPPED[source] if source in SHIPPED else Path(source)
