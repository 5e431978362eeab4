"""The verdict on made-up results, sentence by sentence."""

import json
import subprocess
import sys

import pytest
from test_run_report import change_report, make_natural, make_run, page_of

from mdw_jax.reporting.run_files import Run
from mdw_jax.reporting.verdict import verdict, verdict_of
from mdw_jax.reporting.verdict_results import Results, Row, guessing, results_of, without_closed_form

DRAWN = {"label": "40%", "protocol": "image", "rate": 0.4, "estimated": None}
NATURAL = {"label": "natural", "protocol": "natural", "rate": None}


def row(name, *scores, label=None, kind="distilled", size=1e5, learned=None, **fields):
    """A row of a preset; scores: a tuple for each set, or one number for each student of one set."""
    sets = scores if isinstance(scores[0], tuple) else (scores,)
    learned = kind == "distilled" if learned is None else learned
    return Row(name, label or name, kind, sets, None if kind == "reference" else size, learned=learned, **fields)


MDW = row("mdw", 49, 50, 51, label="MDW")
RANDOM = row("random", 2, 3, 4, label="random pairs", kind="coreset")
CORRESPOND = row("correspond", 39, 40, 41, label="real pairs, P from the experts", learned=False)
LORS = row("lors", 39, 40, 41, label="LoRS")
EXPERTS = row("experts", 59, 60, 61, label="the experts", kind="reference")
ALL = (RANDOM, CORRESPOND, LORS, EXPERTS)


def results(main=MDW, others=ALL, **fields):
    return Results(main, others, **{"pairs": 100, "captions": 30000, "noise": DRAWN} | fields)


def candidates(**scores):
    """Candidates of s0=... (the start), s50=... on val."""
    return tuple({"step": int(name[1:]), "val_r_mean": value} for name, value in scores.items())


SCORE = ("MDW: 50.0 % r_mean (mean recall on test; ±2.5, 95 % over 3 students of one set) with 100 pairs (100.0 kB) "
         "instead of 30,000, 40% of them mismatched on purpose.")
# t of 4 degrees of freedom: 2.776 times the root of 2 / 3
BETTER = ('Beyond chance it is better than random pairs by 47.0 points [44.7, 49.3], than "real pairs, P from the experts" '
          "by 10.0 points [7.7, 12.3] and than LoRS by 10.0 points [7.7, 12.3].")
KEEPS = "The set keeps 83% of the best from all the data (the experts, 60.0 %)."
WIDE = "Next: more sets (distill.sets) or students (evaluate.students): intervals are wide."


def test_a_set_that_is_better_than_everything():
    assert verdict(results()) == [SCORE, BETTER, KEEPS, WIDE]


def test_narrow_intervals_over_students_of_one_set_ask_for_sets():
    told = verdict(results(row("mdw", 50, 50.5, 51, label="MDW")))
    assert told[-1] == ("Next: more sets (distill.sets=3): students of one set do not tell how much another differs.")


def test_intervals_are_over_sets_where_both_have_several():
    main = row("mdw", (49, 51), (50, 52), (51, 53), label="MDW")
    told = verdict(results(main, (row("lors", (39, 41), (40, 42), (41, 43), label="LoRS"), RANDOM, CORRESPOND, EXPERTS)))
    assert told[0].startswith("MDW: 51.0 % r_mean (mean recall on test; ±2.5, 95 % over 3 sets) with ")
    assert "and than LoRS by 10.0 points [7.7, 12.3]." in told[1]  # over the means 50, 51, 52 and 40, 41, 42
    assert "than random pairs by 48.0 points" in told[1]  # over students: random pairs have one set


def test_a_gain_that_is_none_is_said():
    told = verdict(results(others=(RANDOM, CORRESPOND, row("lors", 49, 50, 52, label="LoRS"), EXPERTS)))
    assert told[1] == ('Beyond chance it is better than random pairs by 47.0 points [44.7, 49.3] and than "real pairs, P '
                       'from the experts" by 10.0 points [7.7, 12.3]; no difference that this run can tell from LoRS '
                       "(-0.3 points [-3.5, +2.8]).")
    told = verdict(results(others=(row("random", 49, 50, 51, label="random pairs", kind="coreset"),)))
    assert told[1] == "No difference that this run can tell from random pairs (+0.0 points [-2.3, +2.3])."


def test_a_set_that_is_worse():
    told = verdict(results(others=(row("random", 59, 60, 61, label="random pairs", kind="coreset"), CORRESPOND, LORS,
                                   EXPERTS)))
    assert told[1] == ('Beyond chance it is better than "real pairs, P from the experts" by 10.0 points [7.7, 12.3] and '
                       "than LoRS by 10.0 points [7.7, 12.3] and worse than random pairs by 10.0 points [7.7, 12.3].")


def test_of_several_rivals_the_best_is_compared_and_counted():
    others = (RANDOM, CORRESPOND, LORS, row("vld", 19, 20, 21), row("herding", 9, 10, 11, kind="coreset"),
              row("k_center", 4, 5, 6, kind="coreset"), EXPERTS)
    told = verdict(results(others=others))
    assert "than herding (the best of 2 choices of real pairs) by 40.0 points" in told[1]
    assert "than LoRS (the best of 2 other methods) by 10.0 points" in told[1] and "vld" not in told[1]


def test_a_single_student_tells_nothing_from_chance():
    told = verdict(results(row("mdw", 50, label="MDW")))
    assert told[0].startswith("MDW: 50.0 % r_mean (mean recall on test; one student, so no interval) with 100 pairs ")
    assert told[1] == ('Against random pairs (+47.0 points), "real pairs, P from the experts" (+10.0 points) and LoRS '
                       "(+10.0 points) a single student does not tell chance from gain.")
    assert told[-1] == WIDE


@pytest.mark.parametrize(("noise", "words"), [
    (DRAWN, "40% of them mismatched on purpose."),
    (DRAWN | {"rate": 0.0, "label": "0%"}, "none of them mismatched on purpose."),
    (NATURAL | {"estimated": {"eta": 0.125, "low": 0.1, "high": 0.15, "confidence": 0.95}},
     "an estimated 12.5% [10.0%, 15.0%] of them mismatched."),
    (NATURAL | {"estimated": None}, "an unknown share of them mismatched."),
    (NATURAL | {"estimated": {"eta": 0.0, "low": 0.0, "high": 1.0, "confidence": 1.0}},
     "an unknown share of them mismatched."),
])
def test_the_noise_is_what_is_known_of_it(noise, words):
    told = verdict(results(noise=noise))
    assert told[0].endswith(f"instead of 30,000, {words}") and "clean" not in " ".join(told)


@pytest.mark.parametrize(("low", "high", "said"), [(0.0, 1.0, True), (0.1, 0.5, True), (0.3, 0.5, False)])
def test_an_estimate_that_tells_nothing_is_said(low, high, said):
    told = verdict(results(noise=NATURAL | {"estimated": {"eta": low, "low": low, "high": high, "confidence": 0.95}}))
    assert ("The estimate of the noise does not tell how many pairs are mismatched." in told) == said


def test_scores_at_the_level_of_guessing_are_called_that():
    assert guessing(1000, 1000) == pytest.approx(100 * (0.001 + 0.005 + 0.01) / 3)
    # Two captions of each image: at least one of them is among the first k of 20.
    by_hand = [1 / 10, 5 / 10, 1, 2 / 20, 1 - 15 * 14 / (20 * 19), 1 - 10 * 9 / (20 * 19)]
    assert guessing(10, 20) == pytest.approx(100 * sum(by_hand) / 6)
    assert guessing(2, 2) == pytest.approx((50 + 100 + 100) / 3)
    main, sizes = row("mdw", 0.7, 0.8, 0.9, label="MDW"), {"test_images": 1000, "test_captions": 1000}
    told = verdict(results(main, (row("random", 0.7, 0.8, 0.9, label="random pairs", kind="coreset"), *ALL[1:]), **sizes))
    assert told[0].endswith(" on purpose; that is about what guessing gives (0.5 % with 1,000 images).")
    assert told[-1].startswith("Next: published weights (model.weights) or more pairs (distill.pairs): at the level of "
                               "guessing, methods cannot be told apart; ")
    assert "guessing" not in " ".join(verdict(results(**sizes)) + verdict(results(main)))  # better, or of unknown size


def test_scores_selected_on_test_are_optimistic():
    told = verdict(results(row("mdw", 49, 50, 51, label="MDW", on_test=True)))
    assert told[0].endswith("on purpose; students were selected on test, so this is optimistic.")
    told = verdict(results(others=(RANDOM, CORRESPOND, LORS._replace(on_test=True), EXPERTS)))
    assert "and than LoRS (selected on test, so optimistic) by 10.0 points" in told[1]


def test_what_distilling_added_to_the_start():
    told = verdict(results(candidates=candidates(s0=30.0, s50=42.5)))
    assert told[2] == ("Distilling added 12.5 points to the start (on val, which chose the set; no interval); the set "
                       "keeps 83% of the best from all the data (the experts, 60.0 %).")
    assert "distill.steps" not in told[-1]  # a single checkpoint does not tell whether more steps help
    told = verdict(results(candidates=candidates(s0=30.0, s50=41.0, s100=42.5)))
    assert told[-1].endswith("; more distill.steps: the last checkpoint was the best.")
    told = verdict(results(candidates=candidates(s0=30.0, s50=42.5, s100=41.0)))
    assert "distill.steps" not in told[-1]
    told = verdict(results(others=(RANDOM,), candidates=candidates(s0=42.5, s50=30.0)))
    assert told[2] == "Distilling added nothing: val chose the start."
    assert "another distill.lr_images or more distill.steps: no checkpoint beat the start" in told[-1]
    assert verdict(results(candidates=candidates(s0=42.5))) == verdict(results())  # of correspond: there was no choice


def test_how_much_of_all_the_data_is_kept_and_what_buys_more():
    half = (RANDOM, CORRESPOND, LORS, row("full", 99, 101, label="full data", kind="reference"), EXPERTS)
    told = verdict(results(others=half))
    assert told[2] == "The set keeps 50% of the best from all the data (full data, 100.0 %)."
    assert told[-1].endswith("intervals are wide; more pairs (distill.pairs).")
    told = verdict(results(others=half, image_side=128))
    assert told[-1].endswith("; more pairs (distill.pairs), which smaller stored images (distill.image_size=64) pay for.")
    assert verdict(results(others=half, image_side=32))[-1].endswith("; more pairs (distill.pairs).")
    told = verdict(results(others=(*ALL[:3], row("full", 40, kind="reference"))))
    assert told[2] == "The set reaches 125% of the best from all the data (full, 40.0 %)."


def test_unequal_bytes_are_said():
    told = verdict(results(others=(RANDOM._replace(size=2e5), CORRESPOND._replace(size=1.04e5), LORS, EXPERTS)))
    assert told[3] == "Bytes are not equal: random pairs 2 times as many bytes as MDW."


def test_values_at_the_end_of_their_range():
    told = verdict(results(row("mdw", 49, 50, 51, label="MDW", at_edge=frozenset({"steps", "lr_scale"}))))
    assert told[-1] == ("Next: a wider evaluate.lr_scales and evaluate.steps: the best lies at the end of what was "
                        "allowed; more sets (distill.sets) or students (evaluate.students): intervals are wide.")


def test_few_val_images():
    assert verdict(results(val_images=100))[-1] == WIDE
    assert verdict(results(val_images=30))[-1] == WIDE[:-1] + "; more val data: 30 images chose everything."


def test_presets_that_would_tell_more_are_named():
    told = verdict(results(others=()))
    assert told == [SCORE, "Next: add random, correspond, lors and experts to run.presets, to know whether random pairs, "
                           "real pairs with P from the experts or a published method would do as well and how much all "
                           f"the data would give; {WIDE.removeprefix('Next: ')}"]
    told = verdict(results(others=ALL[1:]))
    assert told[-1].startswith("Next: add random to run.presets, to know whether random pairs would do as well; ")
    told = verdict(results(others=ALL[:3]))
    assert told[-1].startswith("Next: add experts to run.presets, to know how much all the data would give; ")
    told = verdict(results(row("covmatch", 49, 50, 51, needs_experts=False), (RANDOM, LORS, EXPERTS)))
    assert told[-1] == WIDE  # it has no experts, whose P real pairs could have
    told = verdict(results(RANDOM, (EXPERTS,)))
    assert told[-1] == f"{WIDE[:-1]}; more pairs (distill.pairs)."


def test_a_run_without_small_sets():
    told = verdict(results(EXPERTS, (row("full", 70, kind="reference", label="full data"),), test_images=1000,
                           test_captions=5000))
    assert told == ["No small set in this run; the best from all the data is 70.0 % r_mean (mean recall on test; full "
                    "data).",
                    "To know what a small set keeps of it, add the presets mdw, random and correspond to run.presets."]


def test_it_is_two_to_five_sentences_whatever_is_said(tmp_path):
    most = results(row("mdw", 49, 50, 51, label="MDW", at_edge=frozenset({"steps"}), on_test=True),
                   (RANDOM._replace(size=1), EXPERTS), noise=NATURAL | {"estimated": {
                       "eta": 0.0, "low": 0.0, "high": 1.0, "confidence": 1.0}},
                   candidates=candidates(s0=1.0, s1=2.0, s2=3.0), val_images=1, image_side=224)
    assert len(verdict(most)) == 5
    assert verdict(most)[-1].count(";") == 2  # the three most important pieces of advice


def test_the_verdict_of_a_folder_stands_on_top_of_the_page_without_jax(tmp_path):
    folder = make_run(tmp_path / "run", pairs=12, caption="a dog")
    told = verdict_of(Run(folder))
    assert told[0] == ("MDW: 41.0 % r_mean (mean recall on test; ±2.5, 95 % over 3 students of one set) with 12 pairs "
                       "(10.1 kB) instead of 1,000, 40% of them mismatched on purpose.")
    assert told[1] == "Beyond chance it is better than random pairs by 30.0 points [27.7, 32.3]."
    assert told[2] == "The set keeps 80% of the best from all the data (the experts themselves, 51.0 %)."
    text, reader = page_of(folder)
    assert all(sentence in " ".join(reader.text["p"]) for sentence in told)
    assert text.index("Beyond chance") < text.index("<section")
    program = ("import sys\nfrom mdw_jax.reporting.verdict import verdict_of\nfrom mdw_jax.reporting.run_files import Run\n"
               "print(verdict_of(Run(sys.argv[1])))\nassert not {'jax', 'matplotlib'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", program, folder], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(told)


def test_the_sizes_of_splits_come_from_report_json(tmp_path):
    folder = make_run(tmp_path / "run", pairs=12)
    about = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(about | {"splits": {
        "val": {"images": 20, "captions": 20}, "test": {"images": 11, "captions": 11}}}))
    told = verdict_of(Run(folder))
    assert "; that is about what guessing gives (48.5 % with 11 images)" in told[0]
    (folder / "report.json").write_text(json.dumps(about | {"splits": {"val": {"images": 20, "captions": 20}}}))
    told = verdict_of(Run(folder))
    assert "guessing" not in told[0] and told[-1].endswith("; more val data: 20 images chose everything.")


def test_natural_noise_of_a_folder(tmp_path):
    folder = make_natural(tmp_path / "run")
    assert "an estimated 12.5% [10.0%, 15.0%] of them mismatched" in verdict_of(Run(folder))[0]
    change_report(folder, lambda presets: [one["noise"].update(estimated=None) for one in presets])
    assert "an unknown share of them mismatched" in verdict_of(Run(folder))[0]


def test_there_is_no_share_of_a_reference_at_zero():
    told = verdict(results(others=(RANDOM, row("experts", 0, 0, 0, label="the experts", kind="reference"))))
    assert "No share can be given of the best from all the data (the experts, 0.0 %)." in told
    assert "inf" not in " ".join(told)


def test_equal_scores_do_not_ask_for_narrower_intervals():
    same = (row("random", 50, 50, 50, label="random pairs", kind="coreset"), CORRESPOND, LORS, EXPERTS)
    told = verdict(results(row("mdw", 50, 50, 50, label="MDW"), same))
    assert "no difference that this run can tell from random pairs (+0.0 points [+0.0, +0.0])" in told[1]
    assert told[-1] == "Next: more sets (distill.sets=3): students of one set do not tell how much another differs."


def test_intervals_of_recalls_end_at_0_and_100():
    for scores, words in (((0, 1, 2), "0.0 to 3.5"), ((98, 99, 100), "96.5 to 100.0"), ((49, 50, 51), "±2.5")):
        told = verdict(results(row("mdw", *scores, label="MDW")))
        assert f"; {words}, 95 % over 3 students of one set)" in told[0]


@pytest.mark.parametrize(("low", "said"), [(0.24, True), (0.01, False)])
def test_scores_on_test_pairs_that_are_mismatched_themselves_are_too_low(low, said):
    estimated = {"eta": low + 0.05, "low": low, "high": low + 0.1, "confidence": 0.95}
    sentence = "Val and test are as they came too: pairs that are mismatched there make all scores here too low."
    assert (sentence in verdict(results(noise=NATURAL | {"estimated": estimated}))) is said


@pytest.mark.parametrize(("estimated", "said"), [
    (None, True), ((0.0, 1.0), True), ((0.0, 0.2), True), ((0.0, 0.04), False)])
def test_held_out_pairs_are_as_noisy_as_train(estimated, said):
    estimated = estimated and {"eta": 0.0, "low": estimated[0], "high": estimated[1], "confidence": 0.95}
    sentence = ("he pairs held out for val and test are as noisy as train: scores here are lower than they would be on "
                "clean pairs.")
    told = " ".join(verdict(results(noise=NATURAL | {"estimated": estimated}, held_out=True)))
    assert (sentence in told) is said and "as they came too" not in told
    assert sentence not in " ".join(verdict(results(held_out=True)))  # noise is drawn in train alone


FORM = row("closed_form", 43.2, label="closed form", kind="reference", on_val=44.1)


@pytest.mark.parametrize("main", [MDW, FORM])
def test_experts_below_the_closed_form_are_said(main):
    experts = row("experts", 35, 36, kind="reference", on_val=36.9)
    others = (RANDOM, CORRESPOND, experts, *[FORM] * (main is MDW))
    [told] = [words for words in verdict(results(main, others, untried=("one", "two"))) if "below" in words]
    assert told == ("The experts ended below the closed form, with 36.9 % r_mean on val against 44.1: by that the "
                    "closed form, in closed_form/ of the run folder, is the better model of these pairs; one and two (on "
                    "test 35.5 against 43.2).")
    assert "the better model of these pairs (on test" in " ".join(verdict(results(main, others)))
    otherwise = (RANDOM, CORRESPOND, experts._replace(scores=((43, 44),)), *[FORM] * (main is MDW))
    assert "below" not in " ".join(verdict(results(main, otherwise)))
    near = (RANDOM, CORRESPOND, experts._replace(on_val=43.2), *[FORM] * (main is MDW))
    assert "below" not in " ".join(verdict(results(main, near)))


def test_val_scores_and_settings_are_read_from_a_run(tmp_path):
    run = Run(make_natural(tmp_path / "run"))
    assert results_of(run).main.on_val is None and results_of(run).held_out is False
    for n, one in enumerate(run.main.rows):
        one["val_r_mean"] = 40.0 + n
    assert results_of(run).main.on_val == 40 + (len(run.main.rows) - 1) / 2
    run.config["data"] = {"holdout_test": 5}
    assert results_of(run).held_out
    run.config["data"] = []
    assert not results_of(run).held_out


def test_what_a_closed_form_is_not_used_for():
    config = {"experts": {"init": "random", "closed_form": True}, "model": {"mode": "projection"}, "text": {"train": False},
              "distill": {"correspondence_teacher": "experts"}}
    assert [words.partition(" ")[0] for words in without_closed_form(config)] == [
        "experts.init=closed_form", "distill.correspondence_teacher=closed_form"]
    without = config | {"experts": {"init": "random", "closed_form": False}}  # of which experts.init alone is refused
    assert without_closed_form(without)[0].startswith("experts.closed_form=true experts.init=closed_form starts ")
    full = config | {"model": {"mode": "full"}, "distill": {"correspondence_teacher": "both"}}
    assert without_closed_form(full) == without_closed_form({}) == ()


def test_a_published_method_is_advised_in_studies_alone():
    others = (RANDOM, CORRESPOND, EXPERTS)
    told = {name: " ".join(verdict(results(others=others, noise=noise)))
            for name, noise in (("drawn", DRAWN), ("natural", NATURAL))}
    assert ("lors" in told["drawn"], "lors" in told["natural"]) == (True, False)
