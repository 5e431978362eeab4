"""`mdw fairness`: groups in the real data and in every set of a run, and how well models retrieve each of them.

In the run directory:

    fairness.csv                every number, one per row: see `COLUMNS`
    figures/fairness.png        shares of the groups, real and of each preset
    .../hits-<key>.safetensors  beside each set and its experts: which test queries students find (they are trained again
                                for it, once, with the choices of the evaluation)
"""

from ml_collections import ConfigDict

from mdw_jax.analysis.fairness import metrics
from mdw_jax.analysis.fairness.attributes import choose_attributes, read_word_lists
from mdw_jax.analysis.fairness.recall import preset_hits, recall_rows
from mdw_jax.analysis.fairness.report import draw_shares, report
from mdw_jax.analysis.fairness.representation import representation_rows
from mdw_jax.config import resolve
from mdw_jax.errors import UserError
from mdw_jax.io.checksums import write_listed
from mdw_jax.io.files import csv_bytes
from mdw_jax.io.spreadsheet import safe_cell
from mdw_jax.pipeline.announce import announce_noise, announce_source
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.run_folder import run_folder

COLUMNS = ("attribute", "group", "source", "modality", "measure", "value", "low", "high", "chance", "count")
"""Columns of fairness.csv.

source: "real", "real, 40% mismatched", "val" (real pairs, counted as distilled ones are) or a preset. modality: "image"
or "text", of a share. measure: share, ratio (to the real share), neighbor_consistency, a recall, gap (in r_mean, between
the groups that `group` names) or gap_ratio (to that of the reference). low, high: 95 % interval. chance: the value that
neighbor_consistency or a gap has to exceed, see `metrics`. count: images, captions or pairs behind a share; test images
of a group.
"""


def fairness_command(config: ConfigDict) -> None:
    """Compare groups: make what is missing of the run, write fairness.csv and the figure, print tables and limits.

    Args:
        config: the run's config, not resolved.

    Raises:
        UserError: `fairness` asks for what cannot be.
    """
    resolved = resolve(config)
    settings, seed = resolved.fairness, resolved.run.seed
    if settings.neighbors < 1 or settings.resamples < 100:
        raise UserError(f"fairness.neighbors ({settings.neighbors}) must be at least 1 and fairness.resamples "
                        f"({settings.resamples}) at least 100.")
    lists = read_word_lists(settings.words)
    announce_noise(config)
    folder = run_folder(config)
    prepared = prepare(resolved)
    announce_source(prepared.pairs)
    training_images = len(prepared.pairs.train.images)
    if settings.neighbors > training_images:
        raise UserError(f"fairness.neighbors is {settings.neighbors} but there are only {training_images} training "
                        "images; lower it.")
    attributes, other_attributes = choose_attributes(prepared.pairs, settings.attributes, lists)
    presets = [open_preset(config, prepared, name) for name in config.run.presets]
    rows = representation_rows(attributes, presets, prepared, settings, seed)
    sums = {preset.name: metrics.per_image(*preset_hits(preset, prepared), prepared.pairs.test.image_of)
            for preset in presets}
    references = [preset.name for preset in presets if preset.spec.kind == "reference"]
    reference = next((name for name in ("full", "experts", *references) if name in sums), None)
    rows += recall_rows(attributes, sums, reference, settings.resamples, seed)
    safe_rows = [{name: safe_cell(cell) for name, cell in row.items()} for row in rows]  # groups are words of the data
    write_listed(folder / "fairness.csv", csv_bytes(COLUMNS, safe_rows))
    figure = folder / "figures" / "fairness.png"
    draw_shares(attributes, rows, figure)
    print(report(rows, reference, other_attributes))
    print(f"numbers: {folder / 'fairness.csv'}\nfigure: {figure}")
