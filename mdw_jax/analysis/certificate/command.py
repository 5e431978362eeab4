"""`mdw certify`: what the certificate promises for the experts of a run, and what is measured where the truth is known.

In the run folder:

    certificate.csv             every number, one a row: see `COLUMNS`
    pictures/certificate.png    bounds and measurements by noise rate; what was learned by heart by epoch

The networks certified are those that distillation reads: the last snapshot stored of every network, its mean loss over
networks. Their noisy loss is measured on val, which no snapshot was trained on or chosen by, with mismatches drawn
there at the rate of the training pairs (of natural noise val has its own, and is taken as it comes). To hold out
training pairs instead would certify other networks, those trained on the rest. Candidates are images and captions of
test, drawn apart from each other: which of them belong together is not asked.
"""


from ml_collections import ConfigDict

from mdw_jax.analysis.certificate.case import _case, _experts, _rates
from mdw_jax.analysis.certificate.report import _written, case_rows, draw_certificate, excess_rows, report
from mdw_jax.config import resolve
from mdw_jax.errors import UserError
from mdw_jax.io.files import write_csv
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.run_folder import run_folder

COLUMNS = ("preset", "recipe", "eta", "source", "eta_low", "eta_high", "epoch", "track", "loss", "measure", "value",
           "low", "high", "bound", "bound_memory", "trivial", "count", "against")
"""eta: the rate in force, by `source`: known (a drawn noise), given (noise.rate of natural noise) or estimated, then
with its interval. measure, of a loss at an epoch unless said otherwise:
excess_bound_open, excess_bound_closed   Fact C; informative_open, informative_closed: the eta up to which it is
excess            clean risk beyond that of `against`; bound: Fact C, open form; bound_memory: with what is known by
                  heart (`certificate.memory_cost`)
clean_risk        on val as truly paired; noisy_risk: as mismatched; shuffled_risk: at random partners; trivial: the
                  loss of a network that guesses
upper_bound       of the clean risk at this eta; noisy_upper_bound: that needs no eta
informative_upper the eta up to which that bound would be below `trivial` for a network this good
residual          share of a track's weight on mismatched pairs; bound: Fact C at it (track "all": of all together)
train_mismatched, train_never, train_matched, val_mismatched, val_matched (natural noise: train_given, val_given)
                  mean losses by epoch; memory: train_never - train_mismatched; memory_share: of the way to right pairs
"""


def certify_command(config: ConfigDict) -> None:
    """Train what is missing of the experts, write certificate.csv and the picture, print the tables and the limits."""
    resolved = resolve(config)
    settings = resolved.certify
    rates = _rates(resolved)
    if not 0 < settings.confidence < 1 or settings.candidates < 1 or settings.pairs < 2:
        raise UserError(f"certify.confidence ({settings.confidence}) must lie between 0 and 1, certify.candidates "
                        f"({settings.candidates}) be at least 1 and certify.pairs ({settings.pairs}) at least 2.")
    folder = run_folder(config)
    prepared = prepare(resolved)
    cases = [_case(names, preset, prepared, settings) for names, preset in _experts(config, prepared, rates)]
    rows = [row for case in cases for row in case_rows(case)] + excess_rows(cases)
    write_csv(folder / "certificate.csv", list(COLUMNS), [_written(row) for row in rows])
    picture = folder / "pictures" / "certificate.png"
    draw_certificate(cases, rows, picture)
    print(report(cases, rows, settings.confidence))
    print(f"numbers: {folder / 'certificate.csv'}\npicture: {picture}")


# Measuring


# Rows


# What is shown


