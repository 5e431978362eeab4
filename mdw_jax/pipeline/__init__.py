"""The stages of a run. Each is given one preset, does what it is named after, and skips what is already complete.

`run` goes through the presets; `prepared` has the data and the model that they share; `preset_run` says where the
experts and sets of a preset lie; then `experts` trains, `distill` chooses (`coreset`) or distills (`distill_loop`) the
sets, and `evaluate` scores them. `sweep` does all that for every cell of a grid.

In the run directory:

    config.json environment.json     the resolved config; versions, devices and commit
    scores.csv table.md              scores of all students, and the table of all presets
    report.json index.html           where the sets and experts of the run lie, for the report; the report
    metrics.csv                      metrics of every step, while the run goes on; tensorboard/, wandb/ and .wandb-id
                                     where they were asked for
    figures/                         audio of distilled spectrograms; figures of `mdw certify` and `mdw fairness`
    certificate.csv fairness.csv export/ sweep/ sweep.csv
                                     results of the commands of these names
    noise/  cache/                   noise draws; features of frozen encoders
    filter/<score>-<key>/            rows of the training pairs that a filter keeps, kept.npy; filter.json (last)
    experts/<recipe>-<key>/          trajectories net_00, ... and networks at their best epoch best_00, ...; log.jsonl;
                                     division.npy; correct.npy; experts.json (written last); state-*.safetensors and
                                     teachers-*/ during training
    distilled/<preset>-<key>/set_<i>/
                                     metrics.jsonl; record.safetensors (images at a few steps); distilled.safetensors;
                                     card.json (written last); nearest.json (captions); scores-<split>-<key>.json;
                                     during distillation checkpoint.safetensors, history.jsonl and, where restarts are
                                     allowed, checkpoint-good.safetensors

In every folder, `SHA256SUMS` lists what is read again and has no sha256 of its own (`io/checksums.py`).

A key is a sha256 of everything that the contents of the directory depend on: the source of functions from outside this
package is part of it, that of the package is not. What two configs share is made once, and what they do not share is
kept apart: any number of them can use one run directory, and a sweep is nothing more.
"""
