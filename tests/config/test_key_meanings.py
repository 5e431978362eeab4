"""The meanings in the help are the comments beside the defaults."""

from mdw_jax.config import base, defaults
from mdw_jax.config.key_meanings import key_meanings
from mdw_jax.config.sections import flat


def test_every_key_of_the_defaults():
    meanings = key_meanings()
    assert {key for key in meanings if "." in key} == set(flat(base()))
    assert {key for key in meanings if "." not in key} == set(base())
    assert [key for key in flat(base()) if not meanings[key]] == []


def test_where_comments_stand(tmp_path, monkeypatch):
    source = tmp_path / "defaults.py"
    source.write_text('''# c.run.dir = 1
def base():
    c = ConfigDict()
    # not of a key

    c.run = ConfigDict()  # where it goes
    c.run.dir = "#1"  # the directory
    # two lines
    # above
    c.run.presets = ("a",
                     "b")
    c.run.seed = (0 +
                  1)  # at the end
    c.run.bare = 1
    return c


def published():
    c = base()
    c.run.dir = "x"  # not this one
''')
    monkeypatch.setattr(defaults, "__file__", str(source))
    assert key_meanings() == {"run": "where it goes", "run.dir": "the directory", "run.presets": "two lines above",
                              "run.seed": "at the end", "run.bare": ""}
