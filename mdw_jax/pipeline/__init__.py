"""The stages of one preset: train its experts, distil its sets, evaluate them. Each skips what is already complete.

In the run folder:

    config.json environment.json     what was asked, and with which versions
    scores.csv table.md report.json index.html
                                     what came of it; where its sets and experts lie, for the page; the page
    metrics.csv                      by step, while it runs; tensorboard/, wandb/ and .wandb-id, where they were asked for
    pictures/                        sounds of distilled clips; pictures of `mdw certify` and `mdw fairness`
    certificate.csv fairness.csv export/ sweep/ sweep.csv
                                     of the commands of these names
    noise/  cache/                   noise draws; frozen features
    experts/<recipe>-<key>/          trajectories net_00, ...; log.jsonl; division.npy; right.npy; experts.json (last);
                                     state-*.safetensors while they are trained
    distilled/<preset>-<key>/set_<i>/
                                     metrics.jsonl; record.safetensors (images on their way); distilled.safetensors;
                                     card.json (last); nearest.json (captions); scores-<key>.json; while it is
                                     distilled checkpoint.safetensors, history.jsonl and, where restarts are allowed,
                                     checkpoint-good.safetensors

A key is a sha256 of everything that the folder's contents depend on. What two configurations share is made once, and
what they do not share never meets: any number of them can live in one run folder, which is all that a sweep is.
"""
