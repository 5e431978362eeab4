"""`mdw certify`: what the certificate promises for the experts of a run, and what is measured where the truth is known.

In the run directory:

    certificate.csv             every number, one per row: see `rows.COLUMNS`
    figures/certificate.png     bounds and measurements by noise rate; memorization by epoch

The networks certified are those that distillation reads: the last stored snapshot of every network, and the mean loss
over networks. Their noisy loss is measured on val, which no snapshot was trained on or chosen by, with mismatches drawn
there at the rate of the training pairs (under natural noise val has its own, and is used as it is). To hold out
training pairs instead would certify other networks, those trained on the rest. Candidates are images and captions of
test, drawn independently of each other: which of them belong together is not used.

The noise edge is about the training pairs themselves, and needs no networks (`method/noise_edge.py`).
"""

from ml_collections import ConfigDict

from mdw_jax.analysis.certificate.case import at_rates, experts_to_certify, measure_case, rates_to_certify
from mdw_jax.analysis.certificate.noise_edge import edge_rows, edge_section, measure_edges
from mdw_jax.analysis.certificate.plots import draw_certificate
from mdw_jax.analysis.certificate.report import report
from mdw_jax.analysis.certificate.rows import COLUMNS, all_rows, to_csv
from mdw_jax.config import resolve
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import preset_spec
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import write_listed
from mdw_jax.io.files import csv_bytes
from mdw_jax.pipeline.announce import announce, announce_source
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.run_folder import run_folder


def certify_command(config: ConfigDict) -> None:
    """Certify the experts of a run: train those that are missing, write certificate.csv and the figure, print tables.

    Args:
        config: the run's config, not resolved.

    Raises:
        UserError: `certify` asks for what cannot be, or no preset of the run has experts.
    """
    resolved = resolve(config)
    settings = resolved.certify
    rates = rates_to_certify(resolved)
    if not 0 < settings.confidence < 1 or settings.candidates < 1 or settings.pairs < 2:
        raise UserError(f"certify.confidence ({settings.confidence}) must lie between 0 and 1, certify.candidates "
                        f"({settings.candidates}) be at least 1 and certify.pairs ({settings.pairs}) at least 2.")
    announce(preset_config(changed, name) for changed in at_rates(config, rates) for name in config.run.presets
             if preset_spec(name).needs_experts)
    folder = run_folder(config)
    prepared = prepare(resolved)
    announce_source(prepared.pairs)
    cases = [measure_case(names, preset, prepared, settings)
             for names, preset in experts_to_certify(config, prepared, rates)]
    rows = all_rows(cases)
    edges = measure_edges(cases, prepared)
    table = csv_bytes(list(COLUMNS), [to_csv(row) for row in [*rows, *edge_rows(edges)]])
    write_listed(folder / "certificate.csv", table)
    figure = folder / "figures" / "certificate.png"
    draw_certificate(cases, rows, figure)
    print(report(cases, rows, settings.confidence))
    print(edge_section(edges))
    print(f"numbers: {folder / 'certificate.csv'}\nfigure: {figure}")
