"""Which noise a config means where it names none: data that somebody brings are never mismatched in silence."""

from pathlib import Path

import pytest

from mdw_jax.config import base, frozen_backbone, published, resolve
from mdw_jax.config.loading import load_config
from mdw_jax.config.noise import noise_lines
from mdw_jax.config.options import GENERATED_READERS, READERS
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import LABELS
from mdw_jax.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
REAL = [name for name in READERS if name not in GENERATED_READERS]


def changed(make=base, **values):
    c = make()
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
    return c


def resolved(**values):
    noise = resolve(changed(**values)).noise
    return noise.protocol, noise.rate


def test_only_scenes_and_tones_are_generated():
    assert set(GENERATED_READERS) == {"scenes", "tones"} and len(REAL) == len(READERS) - 2


@pytest.mark.parametrize("make", [base, frozen_backbone, published])
@pytest.mark.parametrize("name", [*READERS, "json:dumps"])
def test_only_generated_data_are_mismatched_by_default(make, name):
    noise = resolve(changed(make, data__name=name)).noise
    assert (noise.protocol, noise.rate) == (("image", 0.4) if name in ("scenes", "tones") else ("natural", 0.0))


@pytest.mark.parametrize("values, expected", [
    ({"noise__rate": 0.2}, ("image", 0.2)),
    ({"noise__rate": 0.0}, ("image", 0.0)),
    ({"noise__protocol": "natural"}, ("natural", 0.0)),
    ({"noise__protocol": "natural", "noise__rate": 0.3}, ("natural", 0.3)),
    ({"noise__protocol": "none"}, ("none", 0.0)),
    ({"noise__protocol": "caption"}, ("caption", 0.4)),
    ({"data__name": "folder", "noise__rate": 0.0}, ("natural", 0.0)),
    ({"data__name": "folder", "noise__protocol": "near_duplicate"}, ("near_duplicate", 0.4)),
    ({"data__name": "folder", "noise__protocol": "image", "noise__rate": 0.2}, ("image", 0.2)),
    ({"data__name": "folder", "noise__protocol": "natural", "noise__rate": 0.2}, ("natural", 0.2)),
    ({"data__name": "folder", "noise__file": "index.npy"}, ("image", 0.4)),
])
def test_what_is_set_stays_and_the_rest_follows(values, expected):
    assert resolved(**values) == expected


@pytest.mark.parametrize("name", [*REAL, "json:dumps"])
def test_a_rate_without_a_protocol_is_asked_about(name):
    with pytest.raises(UserError) as error:
        resolve(changed(data__name=name, noise__rate=0.4))
    message = str(error.value)
    assert message.startswith("noise.rate is 0.4, but noise.protocol is not set") and f"data.name={name}" in message
    assert "noise.protocol=image to mismatch" in message and "noise.protocol=natural to assume" in message
    assert message.count(". ") == 0 and message.endswith(".")


def test_a_rate_without_a_protocol_is_asked_about_where_one_preset_sets_it():
    config = changed(data__name="folder", run__preset_overrides=("random:noise.rate=0.2",))
    assert preset_config(config, "mdw").noise.protocol == "natural"
    with pytest.raises(UserError, match="noise.rate is 0.2, but noise.protocol is not set"):
        preset_config(config, "random")


def test_presets_without_drawn_noise_take_natural_data_as_they_come():
    config = changed(data__name="folder")
    for preset in ("full", "closed_form_full"):
        assert preset_config(config, preset).noise == preset_config(config, "mdw").noise
    study = changed(data__name="folder", noise__file="index.npy")  # re-pairing by a file is a study as drawn noise is
    assert preset_config(study, "mdw").noise.file and preset_config(study, "full").noise.protocol == "image"
    assert (preset_config(study, "full").noise.rate, preset_config(study, "full").noise.file) == (0.0, "")


def test_settings_of_noise_that_exclude_each_other():
    with pytest.raises(UserError, match="noise.file re-pairs them; leave one of them out"):
        resolve(changed(noise__protocol="natural", noise__file="index.npy"))
    for recipe in ("debiased", "oracle"):
        with pytest.raises(UserError, match="natural noise"):
            resolve(changed(data__name="folder", experts__recipe=recipe))
    assert resolve(changed(data__name="folder", experts__recipe="debiased", noise__protocol="natural",
                           noise__rate=0.3)).noise.rate == 0.3


@pytest.mark.parametrize("name, expected", [
    ("flickr8k", ("image", 0.4)), ("flickr30k", ("image", 0.4)), ("coco", ("image", 0.4)), ("esc50", ("image", 0.4)),
    ("studies/bench", ("image", 0.4)), ("cc3m", ("natural", 0.0)), ("quickstart", ("image", 0.4)),
    ("tones", ("image", 0.4)), ("studies/noise", ("image", 0.4))])
def test_shipped_configs_that_draw_noise_on_real_data_name_it(name, expected):
    config = load_config(str(CONFIGS / f"{name}.py"))
    noise = resolve(config).noise
    assert (noise.protocol, noise.rate) == expected
    if config.data.name not in GENERATED_READERS:
        assert (config.noise.protocol, config.noise.rate) == expected


def test_no_label_calls_pairs_clean_or_noisy():
    assert not [label for label in LABELS.values() if "clean" in label or "nois" in label.replace("noise", "")]


def test_drawn_noise_is_told_in_one_line_with_all_its_rates():
    sections = [resolve(changed(noise__rate=rate)).noise for rate in (0.4, 0.0, 0.1, 0.25, 0.4)]
    assert noise_lines(sections[:1]) == [
        "noise: 40 % of the training pairs are mismatched on purpose (image, seed 0); for data as they are: "
        "--config.noise.protocol=natural --config.noise.rate=0"]
    assert [line.partition(" of ")[0] for line in noise_lines(sections)] == ["noise: 10 %, 25 % or 40 %"]
    others = [resolve(changed(**values)).noise for values in (
        {"noise__protocol": "caption", "noise__seed": 3}, {"noise__file": "a/index.npy"},
        {"data__name": "folder", "noise__protocol": "natural", "noise__rate": 0.125})]
    words = noise_lines(others)
    assert len(words) == 3 and "40 % of the training pairs are mismatched on purpose (caption, seed 3)" in words[0]
    assert "the training pairs are re-paired by 'a/index.npy'; for data as they are, leave noise.file out" in words[1]
    assert words[2] == "noise: 12.5 % of the training pairs are assumed to be mismatched (natural)"


def test_pairs_as_they_come_are_not_announced():
    assert noise_lines([resolve(changed(data__name="folder")).noise, resolve(changed(noise__rate=0.0)).noise]) == []


@pytest.mark.parametrize("line", noise_lines([resolve(base()).noise]))
def test_the_way_out_that_the_line_names_leads_to_natural_noise_of_unknown_rate(line):
    words = line.partition("as they are: ")[2].split()
    overrides = [tuple(word.removeprefix("--config.").split("=")) for word in words]
    for path in (None, CONFIGS / "flickr8k.py"):
        noise = resolve(load_config(path and str(path), overrides)).noise
        assert (noise.protocol, noise.rate) == ("natural", 0.0)
