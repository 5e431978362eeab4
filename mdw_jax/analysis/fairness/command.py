"""`mdw fairness`: groups in the real data and in every set of a run, and how well models of each retrieve them.

In the run folder:

    fairness.csv            every number, one a row: see `COLUMNS`
    pictures/fairness.png   shares of the groups, real and of each preset
    .../hits-<key>.npz      beside each set and expert: which test queries its students find (they are trained again for
                            it, as the evaluation chose them; kept, so that it happens once)
"""

import dataclasses
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.analysis.fairness import metrics
from mdw_jax.analysis.fairness.attributes import ALL, LEAST, REST, Attribute, choose_attributes, read_word_lists
from mdw_jax.analysis.fairness.metrics import Gap, Interval
from mdw_jax.analysis.fairness.report import draw_shares, report
from mdw_jax.config import resolve
from mdw_jax.config.presets import DISTILLED
from mdw_jax.config.sections import fields
from mdw_jax.data.streaming import concat_map
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.io.files import digest, write_atomically, write_csv
from mdw_jax.io.trajectory import is_finished, open_trajectory, read_snapshot
from mdw_jax.method.retrieval import METRICS
from mdw_jax.method.students import Protocol, evaluate
from mdw_jax.models import embedding
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, similarities
from mdw_jax.pipeline.distill import distill_stage, student_data
from mdw_jax.pipeline.evaluate import evaluate_stage, student_seed
from mdw_jax.pipeline.experts import experts_stage
from mdw_jax.pipeline.prepared import Prepared, backbone_features, prepare, student_model
from mdw_jax.pipeline.preset_run import Preset, open_preset
from mdw_jax.pipeline.run_folder import run_folder
from mdw_jax.runtime.progress import progress
from mdw_jax.runtime.rng import named_generator

COLUMNS = ("attribute", "group", "of", "side", "measure", "value", "low", "high", "chance", "count")
"""of: "real", "real, 40% mismatched", "val" (real pairs, counted as distilled ones are) or a preset. side:
"image" or "text" of a share. count: images, captions or pairs that a share is of; test images of a group. chance: what
an agreement or a gap has to exceed: see `fairness.agreement`, `fairness.gap`."""


def fairness_command(config: ConfigDict) -> None:
    """Make what is missing of the run, write fairness.csv and the picture, print the tables and what they leave out."""
    resolved = resolve(config)
    settings = resolved.fairness
    if settings.neighbors < 1 or settings.resamples < 100:
        raise UserError(f"fairness.neighbors ({settings.neighbors}) must be at least 1 and fairness.resamples "
                        f"({settings.resamples}) at least 100.")
    lists = read_word_lists(settings.words)
    folder = run_folder(config)
    prepared = prepare(resolved)
    if settings.neighbors > (there := len(prepared.pairs.train.images)):
        raise UserError(f"fairness.neighbors is {settings.neighbors} but there are only {there} training images; "
                        "lower it.")
    attributes, left_out = choose_attributes(prepared.pairs, settings.attributes, lists)
    presets = [open_preset(config, prepared, name) for name in config.run.presets]
    rows = _representation(attributes, presets, prepared, settings, resolved.run.seed)
    found = {preset.name: _hits(preset, prepared) for preset in presets}
    reference = next((name for name in ("full", "experts") if name in found), None)
    test_image_of = prepared.pairs.test.image_of
    sums = {name: metrics.per_image(images, texts, test_image_of) for name, (images, texts) in found.items()}
    rows += recall_rows(attributes, sums, reference, settings.resamples, resolved.run.seed)
    write_csv(folder / "fairness.csv", list(COLUMNS), rows)
    picture = folder / "pictures" / "fairness.png"
    draw_shares(attributes, rows, picture)
    print(report(rows, reference, left_out))
    print(f"numbers: {folder / 'fairness.csv'}\npicture: {picture}")


# Attributes


# Representation


def real_rows(attribute: Attribute, train, presets: Sequence[Preset]) -> list[dict]:
    """Shares of the real training data: as truly paired, and as each noise draw of the presets pairs it.

    By image, and by caption: each caption counts for the groups of the image it is paired with. Under noise an image's
    groups by words are those that the captions it is paired with mention.
    """
    draws = {preset.noise.sha256: preset.noise for preset in presets if preset.noise.true_rate}
    pairings = {"real": train.image_of} | {f"real, {noise.label} mismatched": noise.image_of
                                           for noise in draws.values()}
    rows = []
    for name, image_of in pairings.items():
        members = attribute.train
        if attribute.said is not None:
            members = metrics.members_by_words(attribute.said, image_of, len(members))
        members = metrics.with_rest(members)
        for side, counted in (("image", members), ("text", members[image_of])):
            rows += _rows(attribute, name, side, "share", metrics.share(counted), len(counted))
    return rows


def distilled_rows(attribute: Attribute, name: str, images, texts, image_of, generator, resamples: int) -> list[dict]:
    """Shares of one preset's sets and their ratios to the real ones.

    images: (S, M, k) nearest training images of each distilled image; texts: likewise captions; image_of: (K,) the
    image each training caption truly describes, whose groups it counts for.
    """
    members, rows = metrics.with_rest(attribute.train), []
    for side, nearest, real in (("image", images, members), ("text", image_of[texts], members[image_of])):
        rows += _counted(attribute, name, side, members[nearest].mean(2), real.mean(0), generator, resamples)
    return rows


def _counted(attribute: Attribute, name: str, side: str, counted, real, generator, resamples: int) -> list[dict]:
    """Shares of (S, M, G) counted pairs, and their ratios to the (G,) shares `real`."""
    share, ratio = metrics.amplification(counted, real, generator, resamples)
    pairs = counted.shape[0] * counted.shape[1]
    return [*_rows(attribute, name, side, "share", share, pairs), *_rows(attribute, name, side, "ratio", ratio, pairs)]


def control_rows(attribute: Attribute, images, texts, image_of, generator, resamples: int) -> list[dict]:
    """What the counting makes of real pairs: val images with a caption each, counted as distilled ones are.

    images, texts: (N_val, k) as in `distilled_rows`. Here the ratio is to val's own true shares, which are known.
    """
    rows, members, held_out = [], metrics.with_rest(attribute.train), metrics.with_rest(attribute.val)
    for side, found in (("image", images), ("text", image_of[texts])):
        rows += _counted(attribute, "val", side, members[found].mean(1)[None], held_out.mean(0), generator, resamples)
        value, chance = metrics.neighbor_consistency(held_out, members, found)
        rows.append({"attribute": attribute.name, "group": ALL, "of": "val", "side": side, "measure": "agreement",
                     "value": value, "chance": chance, "count": len(found)})
    return rows


def _rows(attribute: Attribute, name: str, side: str, measure: str, found: Interval, count: int) -> list[dict]:
    return [{"attribute": attribute.name, "group": group, "of": name, "side": side, "measure": measure, "count": count,
             **_numbers(Interval(*(end[g] for end in found)))}
            for g, group in enumerate((*attribute.values, REST))]


def _numbers(found: Interval) -> dict:
    return {name: float(value) for name, value in found._asdict().items()}


def _representation(attributes, presets, prepared: Prepared, settings: ConfigDict, seed: int) -> list[dict]:
    """The rows of real data, of val as a control, and of every preset's sets."""
    train, val = prepared.pairs.train, prepared.pairs.val
    forward, real = backbone_features(prepared)
    near_images = lambda features: embedding.nearest(features, real, settings.neighbors)
    near_texts = lambda features: embedding.nearest(features, prepared.texts.train, settings.neighbors)
    held_out = prepared.val.images if prepared.model.mode == "projection" else concat_map(
        forward, prepared.val.images, 100)
    captioned, caption = np.unique(val.image_of, return_index=True)
    control = near_images(held_out)[captioned], near_texts(prepared.texts.val[caption])
    nearest = {}
    for preset in (preset for preset in presets if preset.name in DISTILLED):
        sets = [load_distilled(folder)[0] for folder in distill_stage(preset, prepared)]
        nearest[preset.name] = (
            np.stack([near_images(concat_map(forward, jnp.asarray(one.images), 100)) for one in sets]),
            np.stack([near_texts(prepared.read(one.texts)) for one in sets]))
    rows = []
    for attribute in attributes:
        generator = lambda name: named_generator(seed, "fairness", name, attribute.name)
        rows += real_rows(attribute, train, presets)
        rows += control_rows(attribute._replace(val=attribute.val[captioned]), *control, train.image_of,
                             generator("val"), settings.resamples)
        for name, found in nearest.items():
            rows += distilled_rows(attribute, name, *found, train.image_of, generator(name), settings.resamples)
    return rows


# Retrieval


def _hits(preset: Preset, prepared: Prepared):
    """(K, 3) and (N, 3) of `fairness.hits` on test, the mean over the preset's students of all sets (or networks)."""
    found = _student_hits(preset, prepared) if preset.name in DISTILLED else [_network_hits(preset, prepared)]
    return tuple(np.concatenate([one[side] for one in found]).mean(0) for side in (0, 1))


def _student_hits(preset: Preset, prepared: Prepared) -> list[tuple]:
    """The hits of each set's students: those of the scores, or, where these are the peers' choice on test, honest ones.

    Training is repeated at the scale and to the step that val chose; the seeds are the same, and so are the students.
    """
    c = preset.config
    scores = evaluate_stage(preset, prepared)
    student, found = None, []
    for index, folder in enumerate(distill_stage(preset, prepared)):
        distilled, card = load_distilled(folder)
        protocol = dataclasses.replace(fields(Protocol, c.evaluate), select_on="val")
        if c.evaluate.tower:
            protocol = dataclasses.replace(protocol, lr_scales=c.evaluate.tower_lr_scales)
        chosen = next(row for row in scores if row["set"] == index)
        if chosen["select_on"] == "val":
            protocol = dataclasses.replace(protocol, lr_scales=(chosen["lr_scale"],), steps=chosen["steps"])

        def train(distilled=distilled, protocol=protocol, index=index):
            nonlocal student
            student = student or student_model(c, prepared)
            model, val, test = student
            with progress(f"students of {preset.name} {index}", 1, "sets") as advance:
                students = evaluate(model, student_data(model, distilled), val, None, protocol,
                                    seed=student_seed(preset, index)).params
                advance(1)
            return model, students, test

        key = digest("hits", card["key"], c.evaluate.to_dict(), c.model.to_dict(), dataclasses.asdict(protocol))
        found.append(_kept(folder / f"hits-{key[:10]}.npz", key, train))
    return found


def _network_hits(preset: Preset, prepared: Prepared) -> tuple:
    """The hits of a preset's networks: at their best epoch on val if the experts kept it, else at the last one kept."""
    record = experts_stage(preset, prepared)
    best = is_finished(preset.experts / "best_00")
    kind = "best" if best else "net"

    def read():
        paths = [open_trajectory(preset.experts / f"{kind}_{n:02d}", key=preset.experts_key)
                 for n in range(record["networks"])]
        return prepared.model, [read_snapshot(path, path.length - 1) for path in paths], prepared.test

    if not best:
        print(f"note: the networks of '{preset.name}' are those after epoch {record['snapshots'] - 1}, the last that "
              "was kept, not of their best epoch.")
    key = digest("hits", preset.experts_key, kind)
    return _kept(preset.experts / f"hits-{key[:10]}.npz", key, read)


def _kept(path: Path, key: str, models) -> tuple:
    """(students, K, 3) and (students, N, 3) bool in the file `path`, or of what `models()` returns, kept there."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) == key:
                return file["captions"], file["images"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):  # a damaged copy is made again
        pass
    found = model_hits(*models())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, key=key, captions=found[0], images=found[1])
    write_atomically(path, buffer.getvalue())
    return found


def model_hits(model: DualEncoder, networks: Sequence, test: Inputs) -> tuple:
    """(networks, K, 3) and (networks, N, 3) of `fairness.hits` of several networks' parameters."""
    found = [metrics.hits(similarities(model, params, test), test.image_of) for params in networks]
    return tuple(np.stack([one[side] for one in found]) for side in (0, 1))


def recall_rows(attributes: Sequence[Attribute], sums: Mapping, reference: str | None, resamples: int,
                seed: int) -> list[dict]:
    """Recalls by group, their gaps, and the gaps' ratios to the reference's.

    sums: {preset: (N, 8) of `fairness.per_image`}. Groups of less than ten test images get recalls but enter no gap,
    and neither do the images without a value.
    """
    rows, images = [], len(next(iter(sums.values())))
    weights = metrics.image_weights(named_generator(seed, "fairness", "images"), images, resamples)

    def recalls(attribute: str, groups: Sequence[str], members, name: str) -> list[dict]:
        there = members.any(0)
        found = metrics.interval(metrics.group_recalls(sums[name], members[:, there]),
                                  metrics.group_recalls(sums[name], members[:, there], weights))
        return [{"attribute": attribute, "group": groups[int(place)], "of": name, "measure": metric,
                 "count": int(members[:, place].sum()), **_numbers(Interval(*(end[g, m] for end in found)))}
                for g, place in enumerate(np.flatnonzero(there)) for m, metric in enumerate(METRICS)]

    for name in sums:
        rows += recalls(ALL, [ALL], np.ones((images, 1), bool), name)
    for attribute in attributes:
        large = [g for g in range(len(attribute.values)) if attribute.test[:, g].sum() >= LEAST]
        gaps = {}
        for name, of_model in sums.items():
            rows += recalls(attribute.name, (*attribute.values, REST), metrics.with_rest(attribute.test), name)
            if len(large) > 1:
                gaps[name] = metrics.gap(of_model, attribute.test[:, large], weights,
                                          named_generator(seed, "fairness", "shuffle"))
        for name, found in gaps.items():
            rows += _gap_rows(attribute, [attribute.values[g] for g in large], name, found, gaps.get(reference))
    return rows


def _gap_rows(attribute: Attribute, groups: Sequence[str], name: str, found: Gap, reference: Gap | None) -> list[dict]:
    common = {"attribute": attribute.name, "group": f"{groups[found.best]} - {groups[found.worst]}", "of": name}
    rows = [{**common, "measure": "gap", "chance": found.chance, **_numbers(found.found)}]
    if reference is not None and reference is not found:
        rows.append({**common, "measure": "gap_ratio", **_numbers(metrics.gap_ratio(found, reference))})
    return rows


# What is shown


