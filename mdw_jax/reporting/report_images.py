"""Sections of a report that show the images of a distilled set."""

from html import escape

import jax.numpy as jnp
import numpy as np

from mdw_jax.data.resizing import enlarged
from mdw_jax.method.correspondence import correspondence, matching_probability
from mdw_jax.method.losses import DISTILLATION_LOSSES
from mdw_jax.reporting import figures, html
from mdw_jax.reporting.run_files import PresetResults
from mdw_jax.reporting.text import plural
from mdw_jax.reporting.thumbnails import Thumbnails, thumbnails

# In a page all pairs of all sets are shown. Those of the main sets, and those of all other sets, may take so many bytes.
MAIN_BYTES, OTHER_BYTES = 4e6, 4e6
FIRST = 9  # pairs that are shown at once; the others unfold
STRIPS, ENTRIES, WEIGHT_MAPS = 8, 9, 12  # image strips over time; entries of P; maps of pixel weights


def pairs(preset: PresetResults, budget: float) -> str:
    """All images with the captions nearest to their texts: the first ones at once, the others when a reader unfolds them.

    Args:
        preset: its first set is shown.
        budget: bytes that its images may take in the page.
    """
    total = len(preset.captions)
    drawn = thumbnails(lambda rows: _rgb(preset, rows), total, budget)
    shown = len(drawn.sources)
    which = "all" if shown == total else f"the first {shown:,} of"
    how = f"{preset.label}: {which} {plural(total, 'pair')}, {drawn.words}."
    if shown < total:
        how += " The others would make the page too large; mdw export writes all of them."
    rest = html.unfolding(f"The other {plural(shown - FIRST, 'pair')}", _grid(preset, drawn, range(FIRST, shown), lazy=True)
                          ) if shown > FIRST else ""
    return _grid(preset, drawn, range(min(FIRST, shown))) + html.paragraphs([how], "soft") + rest


def _grid(preset: PresetResults, drawn: Thumbnails, rows: range, lazy: bool = False) -> str:
    kind = "real" if preset.kind == "coreset" else "distilled"
    return html.figures((html.image(drawn.sources[n], f"{kind} image {n}", drawn.is_small, drawn.size if lazy else None),
                         preset.captions[n])
                        for n in rows)


def image_changes(preset: PresetResults) -> str:
    """One strip per image: how it looked at several outer steps; below, how far the pixels have moved on average."""
    if preset.image_history is None or len(preset.image_history["steps"]) < 2:  # a start from which nothing was distilled
        return ""
    steps, images = preset.image_history["steps"].tolist(), preset.image_history["images"]
    rgb = np.stack([figures.to_rgb(moment, preset.is_spectrogram) for moment in images[:, :STRIPS]])
    strips = []
    for n in range(rgb.shape[1]):
        strip = _side_by_side(rgb[:, n])
        words = (f"image {n} at outer steps {', '.join(map(str, steps))}; nearest caption at the end: "
                 f"{preset.captions[n]}")
        strips.append(f"<li>{_image(strip, words, side=min(strip.shape[1], 74 * len(steps)))}</li>")
    change = np.abs(images.astype(np.float32) - images[0].astype(np.float32)).mean((1, 2, 3, 4)) / 255
    heads = "".join(f"<span>{'start' if step == 0 else step}</span>" for step in steps)
    foot = "".join(f"<span>{'' if step == 0 else f'{moved:.1%}'}</span>" for step, moved in zip(steps, change))
    return (f'<ul class="strips"><li class="moments">{heads}</li>\n' + "\n".join(strips)
            + f'\n<li class="moments">{foot}</li></ul>\n<p class="soft">Below: mean change of a pixel since the start, '
            f"in % of the range from black to white.{_selected_step(preset)}</p>")


def _selected_step(preset: PresetResults) -> str:
    best = preset.chosen_candidate
    if best is None:
        return ""
    what = f"the set of step {best['step']}" if best["step"] else "the start, to which distilling added nothing on val"
    return f" The result is {what}, with {best['val_r_mean']:.1f} % the best on val."


def correspondence_entries(preset: PresetResults) -> str:
    """The largest positive off-diagonal entries of P, and a heat map of P beyond the identity.

    P is shown as its loss reads it: as matching probabilities where the loss fits a softmax of it. (A loss from outside
    the package is not imported to show a set, so P is shown as it is.)
    """
    distilled, _ = preset.displayed_set
    if not distilled.correspondence:
        return ""
    matrix = correspondence({name: jnp.asarray(value) for name, value in distilled.correspondence.items()},
                            jnp.arange(len(distilled.images)), distilled.alpha)
    loss = DISTILLATION_LOSSES.get(distilled.loss)
    is_logits = loss is not None and loss.correspondence_scale is not None
    p = np.asarray(matching_probability(matrix, loss) if is_logits else matrix)
    off_diagonal = np.where(np.eye(len(p), dtype=bool), -np.inf, p)
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[: min(ENTRIES, len(p) ** 2 - len(p))]
    places = [divmod(int(place), len(p)) for place in order]
    entries = [_entry(preset, p, i, j) for i, j in places if off_diagonal[i, j] > 0]
    change = np.abs(p - np.eye(len(p)))
    heat = html.image(figures.data_uri(figures.identity_change_rgb(p), 400, photo=False),
                      f"Heat map of the change of P from the identity, {len(p)} images by {len(p)} texts", small=True)
    words = (f"All of P beyond the identity, images down, texts across: red is more, blue less, the strongest color "
             f"{change.max():.3f}, the mean change {change.mean():.4f}.")
    return (f'<ul class="matches">{"".join(entries)}</ul>\n' * bool(entries)
            + f'<figure class="heat">{heat}<figcaption>{words}</figcaption></figure>')


def _entry(preset: PresetResults, p: np.ndarray, image: int, text: int) -> str:
    drawn = _image(_rgb(preset, np.array([image]))[0], f"distilled image {image}")
    return (f"<li>{drawn}<div><strong>{p[image, text]:+.3f}</strong> "
            f'<span class="soft">image {image}, text {text}</span><br>{escape(preset.captions[text])}<br>'
            f'<span class="soft">its own text ({p[image, image]:+.3f}): {escape(preset.captions[image])}</span>'
            "</div></li>\n")


def pixel_weights(preset: PresetResults) -> str:
    """The last Grad-CAM pixel weights over the images (docs/method.md, section 5.4)."""
    history = preset.image_history
    if history is None or "weights" not in history:
        return ""
    images, weights = history["images"][-1][:WEIGHT_MAPS], history["weights"][:WEIGHT_MAPS].astype(np.float32)
    rgb = figures.to_rgb(images, preset.is_spectrogram)
    overlay = figures.overlay_weights(rgb, weights[:, ::-1] if preset.is_spectrogram else weights)
    return html.figures(
        ((_image(_side_by_side([rgb[n], overlay[n]]), f"image {n} and its weights; caption: {preset.captions[n]}",
                 side=192), f"weights {weights[n].min():.2f} to {weights[n].max():.2f}") for n in range(len(rgb))),
        "pairs two")


def _rgb(preset: PresetResults, rows: np.ndarray) -> np.ndarray:
    """Some images of the first set as models see them, (n, H, W, 3) uint8."""
    distilled, _ = preset.displayed_set
    return figures.to_rgb(enlarged(distilled.images[rows], distilled.seen_size), preset.is_spectrogram)


def _side_by_side(images) -> np.ndarray:
    """Images (H, W, 3) in a row, with gray between them."""
    gap = np.full((len(images[0]), max(1, images[0].shape[1] // 32), 3), 128, np.uint8)
    parts = [part for image in images for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _image(image: np.ndarray, alternative: str, side: int = 112) -> str:
    return html.image(figures.data_uri(image, side), alternative, small=min(image.shape[:2]) < 96)
