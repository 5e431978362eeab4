"""What differs between processes is named in one sentence."""

import pytest

from mdw_jax.runtime.agreement import code_digests, difference, program_facts

HOSTS = ["a", "b", "c", "d"]


def config(pairs, **others):
    return {"command": {"mdw": "run"}, "config": {"distill.pairs": pairs, "run.presets": ("mdw", "tesla"), **others}}


def test_equal_facts_agree():
    assert difference([config(100)] * 4, HOSTS) is None
    # What JSON makes of a tuple when it travels is the same value.
    assert difference([config(100), {**config(100), "config": {"distill.pairs": 100, "run.presets": ["mdw", "tesla"]}}],
                      HOSTS) is None


@pytest.mark.parametrize(("values", "words"), [
    ((100, 200), "process 1 on b and process 0 on a differ in their config: distill.pairs is 200 there and 100 in "
                 "process 0; "),
    ((200, 100, 100, 100), "process 0 on a and process 1 on b differ in their config: distill.pairs is 200 there and 100 "),
    ((100, 200, 100, 300), "process 1 on b and process 0 on a differ in their config (and so does process 3): "),
    ((100, 200, 300, 100, 400), "(and so do processes 2 and 4)"),
    ((1, True), "distill.pairs is true there and 1 in process 0"), ((1, 1.0), "distill.pairs is 1.0 there"),
    ((None, ""), 'distill.pairs is "" there and null in process 0')])
def test_the_process_that_differs_is_named(values, words):
    assert words in difference([config(value) for value in values], [*HOSTS, "e"])


def test_many_differences_are_counted_and_long_values_shortened():
    there = config("x" * 500, a=1, b=2, c=3)
    sentence = difference([config(100), there], HOSTS)
    assert "a is 1 there and missing in process 0" in sentence and ", and 1 more;" in sentence
    assert "x" * 60 in difference([config(100), config("x" * 500)], HOSTS) and len(sentence) < 400
    assert "a is missing there and 1 in process 0" in difference([config(100, a=1), config(100)], HOSTS)


def test_the_first_kind_of_facts_counts():
    assert "in their command: mdw is sweep there" in difference(
        [config(100), {**config(200), "command": {"mdw": "sweep"}}], HOSTS)


def test_an_edited_file_is_named(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "method").mkdir(parents=True)
        (tmp_path / place / "method" / "losses.py").write_text("x = 1\n")
        (tmp_path / place / "errors.py").write_text("y = 1\n")
    assert code_digests(tmp_path / "here") == code_digests(tmp_path / "there")
    (tmp_path / "there" / "method" / "losses.py").write_text("x = 2\n")
    code_digests.cache_clear()
    facts = [{"code": code_digests(tmp_path / place)} for place in ("here", "there")]
    sentence = difference(facts, HOSTS)
    assert "differ in their code: method/losses.py is " in sentence and "errors.py" not in sentence


def test_the_whole_package_counts():
    facts = program_facts()
    assert {"runtime/agreement.py", "cli/__init__.py", "method/distill.py"} <= facts["code"].keys()
    assert set(facts["versions"]) == {"python", "jax", "jaxlib", "numpy"} and all(facts["versions"].values())
