"""The noise edge of the training pairs in `mdw certify`: which directions of their cross-covariance chance cannot make."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mdw_jax.analysis.certificate.case import Case
from mdw_jax.method.noise_edge import NoiseEdge, noise_edge
from mdw_jax.pipeline.closed_form import frozen_features
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.reporting.text import markdown_table
from mdw_jax.runtime.rng import named_generator


class EdgeCase(NamedTuple):
    """The noise edge of one noise draw.

    Attributes:
        case: the first case of that draw.
        names: all presets of that draw.
        edge: what was measured.
    """

    case: Case
    names: str
    edge: NoiseEdge


def measure_edges(cases: Sequence[Case], prepared: Prepared) -> list[EdgeCase]:
    """The noise edge of every noise draw of the cases, of all pairs, whatever a filter drops."""
    by_noise: dict[str, list[Case]] = {}
    for case in cases:
        by_noise.setdefault(case.preset.noise.sha256, []).append(case)
    features, texts, edges = frozen_features(prepared).train, np.asarray(prepared.texts.train, np.float32), []
    for own in by_noise.values():
        generator = named_generator(own[0].preset.config.run.seed, "certify", "noise edge")
        names = ", ".join(dict.fromkeys(case.names for case in own))
        edges.append(EdgeCase(own[0], names, noise_edge(generator, features, texts, own[0].preset.noise.image_of)))
    return edges


def edge_rows(edges: Sequence[EdgeCase]) -> list[dict]:
    """Their rows of certificate.csv; `bound` is the edge that a value is compared with."""
    rows = []
    for case, names, edge in edges:
        rate = case.rates[0]
        common = {"preset": names, "source": rate.source, "eta": rate.eta, "eta_low": rate.low, "eta_high": rate.high,
                  "count": edge.images}
        for name, bound in (("noise_edge", edge.edge), ("bernstein_edge", edge.bernstein)):
            rows += [{**common, "measure": f"{name}_top", "value": float(edge.singular_values[0]), "bound": bound},
                     {**common, "measure": f"{name}_directions", "value": edge.directions_above(bound), "bound": bound}]
    return rows


def edge_section(edges: Sequence[EdgeCase]) -> str:
    """What the command prints of them: a heading, a table, and what it means."""
    confidence = edges[0].edge.confidence
    table = markdown_table([{
        "preset": names, "mismatched": case.preset.noise.label, "images": str(edge.images),
        "top singular value": f"{edge.singular_values[0]:.3f}", "noise edge": f"{edge.edge:.3f}",
        "directions above": f"{edge.directions_above(edge.edge)} of {len(edge.singular_values)}",
        "proved edge": f"{edge.bernstein:.3f}", "above it": _above_proved(edge)} for case, names, edge in edges])
    return ("Noise edge of the training pairs: singular values of their whitened cross-covariance (frozen features; at "
            "most 1), and the largest that shuffled captions reach. Nothing is trained, so nothing is assumed about "
            f"memorization:\n\n{table}\n"
            f"* If captions had nothing to do with their images, the top singular value would exceed the noise edge with "
            f"probability at most {1 - confidence:.0%} (exact where images have equally many captions). Further directions "
            "are compared with the same edge, which is conservative (parallel analysis).\n"
            "* The proved edge holds without shuffling (matrix Bernstein inequality); above 1 it says nothing, and more "
            "pairs lower it.\n")


def _above_proved(edge: NoiseEdge) -> str:
    return "vacuous" if edge.bernstein >= 1 else str(edge.directions_above(edge.bernstein))
