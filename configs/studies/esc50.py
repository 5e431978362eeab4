"""Of a finished run of configs/esc50.py: how often students name the class of a test clip (zero-shot, 50 classes).

    python configs/studies/esc50.py runs/esc50

Retrieval among clips whose captions only tell their class says this less plainly: see `mdw_jax.data.readers.audio.esc50`. The
students are those of the run's table, trained again; val chooses their step sizes as there.
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config import base
from mdw_jax.config.presets import DISTILLED, LABELS
from mdw_jax.config.sections import fields
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.method.students import Protocol, evaluate
from mdw_jax.pipeline.distill import set_folder, student_data
from mdw_jax.pipeline.evaluate import student_seed
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset


def accuracy(model, params, split, inputs, texts) -> float:
    """Percent of clips whose nearest class is their own; a class is the mean embedding of its test captions."""
    names, target = np.unique(split.attributes["category"], return_inverse=True)
    embedded = np.asarray(model.embed_text(params["text"], jnp.asarray(texts)))
    classes = np.stack([embedded[target[split.image_of] == number].mean(0) for number in range(len(names))])
    nearest = (np.asarray(model.embed_image(params["image"], inputs)) @ classes.T).argmax(1)
    return 100 * float((nearest == target).mean())


def main(folder):
    config = base().copy_and_resolve_references()
    config.update(ConfigDict(json.loads((Path(folder) / "config.json").read_text())))
    config.run.dir = str(folder)
    prepared = prepare(config)
    for name in config.run.presets:
        if name in DISTILLED:
            preset, found = open_preset(config, prepared, name), []
            for index in range(config.distill.sets):
                distilled, _ = load_distilled(set_folder(preset, index))
                students = evaluate(prepared.model, student_data(prepared.model, distilled), prepared.val, prepared.test,
                                    fields(Protocol, preset.config.evaluate), seed=student_seed(preset, index))
                found += [accuracy(prepared.model, params, prepared.pairs.test, prepared.test.images,
                                   prepared.texts.test) for params in students.params]
            print(f"{LABELS[name]}: {np.mean(found):.1f} +- {np.std(found, ddof=1):.1f} % of {len(found)} students")


if __name__ == "__main__":
    main(sys.argv[1])
