"""Zero-shot accuracy: how often students of a finished run of configs/esc50.py name the class of a test recording.

    python configs/studies/esc50.py runs/esc50

There are 50 classes, and captions only tell the class, so retrieval shows this less directly: see
`mdw_jax.data.readers.audio.esc50`. The students are those of the run's table, trained again; val chooses their step sizes
as there.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config import base
from mdw_jax.config.presets import preset_spec
from mdw_jax.config.sections import fields
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.io.files import read_json
from mdw_jax.method.students import Protocol, evaluate
from mdw_jax.pipeline.evaluate import student_seed
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset
from mdw_jax.pipeline.sets import set_folder, student_data


def accuracy(model, params, split, inputs, texts) -> float:
    """Percent of recordings whose nearest class is their own; a class is the mean embedding of its test captions."""
    names, target = np.unique(split.attributes["category"], return_inverse=True)
    embedded = np.asarray(model.embed_text(params["text"], jnp.asarray(texts)))
    classes = np.stack([embedded[target[split.image_of] == number].mean(0) for number in range(len(names))])
    nearest = (np.asarray(model.embed_image(params["image"], inputs)) @ classes.T).argmax(1)
    return 100 * float((nearest == target).mean())


def main(directory):
    config = base().copy_and_resolve_references()
    config.update(ConfigDict(read_json(Path(directory) / "config.json")))
    config.run.dir = str(directory)
    prepared = prepare(config)
    for name in config.run.presets:
        if preset_spec(name).has_sets:
            preset, accuracies = open_preset(config, prepared, name), []
            for index in range(config.distill.sets):
                distilled, _ = load_distilled(set_folder(preset, index), preset.config.distill.loss)
                students = evaluate(prepared.model, student_data(prepared.model, distilled), prepared.val, prepared.test,
                                    fields(Protocol, preset.config.evaluate), seed=student_seed(preset, index))
                accuracies += [accuracy(prepared.model, params, prepared.pairs.test, prepared.test.images,
                                        prepared.texts.test) for params in students.params]
            print(f"{preset.spec.label}: {np.mean(accuracies):.1f} +- {np.std(accuracies, ddof=1):.1f} %, "
                  f"{len(accuracies)} students")


if __name__ == "__main__":
    main(sys.argv[1])
