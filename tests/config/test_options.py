"""Names of options and tables of functions agree, and a name that is not among them is refused before data are read."""

import importlib

import pytest

from mdw_jax.config import base, options, resolve
from mdw_jax.config.options import CHOICES
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError

TABLES = {
    "READERS": "data.registry:READERS", "NOISE_PROTOCOLS": "data.noise:PROTOCOLS",
    "CAPTION_DEGRADATIONS": "data.structured_noise:DEGRADATIONS", "AUGMENTATIONS": "data.augment:AUGMENTATIONS",
    "PRETRAINED": "models.image.pretrained:SPECS", "TOWERS": "models.build:TOWERS",
    "TEXT_ENCODERS": "models.text.features:TEXT_ENCODERS", "EXPERT_LOSSES": "method.losses:EXPERT_LOSSES",
    "DISTILLATION_LOSSES": "method.losses:DISTILLATION_LOSSES", "STUDENT_OPTIMIZERS": "method.matching:STUDENT_OPTIMIZERS",
    "CORESETS": "method.coresets:CORESETS", "INITS": "method.selection:INITS",
    "FILTER_SCORES": "pipeline.preset_run:SCORER_RECIPES", "WRITERS": "io.metrics:WRITERS",
    "DEVICES": "analysis.cost.devices:DEVICES",
    "DTYPES": "io.trajectory:DTYPES", "OBJECTIVES": "pipeline.outer_step:OBJECTIVES",
    "SET_OPTIMIZERS": "method.distill:SET_OPTIMIZERS",
    "DECAYS": "method.distill:DECAYS", "EXPORT_FORMATS": "export.formats:FORMATS",
}


@pytest.mark.parametrize("names", TABLES)
def test_every_name_has_its_function_and_every_function_its_name(names):
    module, _, table = TABLES[names].partition(":")
    functions = getattr(importlib.import_module(f"mdw_jax.{module}"), table)
    assert len(set(getattr(options, names))) == len(getattr(options, names))
    assert set(getattr(options, names)) == set(functions)


def test_tables_of_settings_name_options_and_keys_of_the_config():
    for names, settings, section in ((options.TOWERS, options.TOWER_SETTINGS, "model"),
                                     (options.TEXT_ENCODERS, options.TEXT_ENCODER_SETTINGS, "text")):
        assert set(settings) == set(names)
        assert {name for taken in settings.values() for name in taken} <= set(base()[section])


def of(key, value):
    config = base()
    config.update_from_flattened_dict({key: (value,) if isinstance(flat(config)[key], tuple) else value})
    return config


@pytest.mark.parametrize("key", CHOICES)
def test_a_wrong_name_is_refused_with_the_choices(key):
    with pytest.raises(UserError) as error:
        resolve(of(key, "mystery"))
    message = str(error.value)
    assert f"there is no {CHOICES[key].noun} 'mystery'; set {key} to one of " in message
    names = [name for name in CHOICES[key].names if name]
    assert all(name in message for name in names[:16])
    # Of many the message says how many others there are, and where they stand.
    assert (f" or {len(names) - 16} others (mdw config --help lists them)" in message) == (len(names) > 16)
    assert ("module:function" in message) == CHOICES[key].plugin


@pytest.mark.parametrize("key", CHOICES)
def test_a_slip_of_the_pen_is_answered_with_the_name_that_was_meant(key):
    name = max(CHOICES[key].names, key=len)
    with pytest.raises(UserError, match=rf"'{name}s' for {key}; did you mean {name}\?"):
        resolve(of(key, name + "s"))


@pytest.mark.parametrize("key", [key for key, choice in CHOICES.items() if choice.plugin])
def test_a_function_that_cannot_be_imported_is_refused(key):
    with pytest.raises(UserError, match=f"{key} names 'nowhere_at_all:function', which cannot be imported"):
        resolve(of(key, "nowhere_at_all:function"))


@pytest.mark.parametrize("key", [key for key, choice in CHOICES.items() if not choice.plugin])
def test_a_function_where_none_can_be(key):
    with pytest.raises(UserError, match=f"no {CHOICES[key].noun} 'json:dumps'; set {key}"):
        resolve(of(key, "json:dumps"))


def test_the_keys_that_name_an_option_exist_and_their_defaults_are_options():
    config = flat(base())
    for key, choice in CHOICES.items():
        value = config[key]
        assert set(value if isinstance(value, tuple) else [value]) <= set(choice.names)
