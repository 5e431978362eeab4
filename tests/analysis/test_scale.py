"""`mdw bench --scale`: made shards, a stage in a process of its own, and how measurements grow."""

import tarfile

import numpy as np
import pytest

from mdw_jax.analysis.scale import command, growth
from mdw_jax.analysis.scale.made_shards import FACTORS, MISMATCHED, write_shards
from mdw_jax.analysis.scale.stage_process import run_stage
from mdw_jax.config.loading import load_config
from mdw_jax.data.registry import load
from mdw_jax.errors import UserError


def test_a_shard_is_the_same_however_many_there_are_and_stays(tmp_path):
    first = write_shards(tmp_path / "a", 10_050, 0)
    assert [path.name for path in first] == ["seed0-00000-10000.tar", "seed0-00001-50.tar"]
    assert write_shards(tmp_path / "b", 10_000, 0)[0].read_bytes() == first[0].read_bytes()
    assert write_shards(tmp_path / "c", 50, 1)[0].read_bytes() != write_shards(tmp_path / "d", 50, 0)[0].read_bytes()
    first[1].write_bytes(b"kept")
    assert write_shards(tmp_path / "a", 10_050, 0)[1].read_bytes() == b"kept"


def test_made_pairs_are_read_and_a_share_of_the_captions_is_of_other_images(tmp_path):
    shards = write_shards(tmp_path, 400, 0)
    with tarfile.open(shards[0]) as archive:
        assert len(archive.getnames()) == 800
    pairs = load("webdataset", train_shards=[str(shards[0])], size=8, holdout_val=50, holdout_test=50)
    images = np.asarray(pairs.train.images, np.float64).reshape(len(pairs.train.images), -1)
    words = np.array([[int(word[1:]) for word in caption.split()] for caption in pairs.train.captions])
    assert words.shape == (len(images), FACTORS)
    # A linear map of the pixels finds the words of matched captions alone.
    design = np.column_stack([images, np.ones(len(images))])
    predicted = design @ np.linalg.lstsq(design, words, rcond=1e-3)[0]
    assert np.corrcoef(predicted.ravel(), words.ravel())[0, 1] > 0.5
    assert 0 < MISMATCHED < 0.5


def test_growth_of_known_laws():
    sizes = [50e3, 200e3, 1e6]
    assert growth.exponent(sizes, [size**1.3 for size in sizes]) == pytest.approx(1.3)
    line, square = [20 + 1e-3 * size for size in sizes], [20 + 1e-9 * size**2 for size in sizes]
    assert growth.exponent(sizes, line) < 1
    assert growth.marginal_exponent(sizes, line) == pytest.approx(1)
    assert growth.marginal_exponent(sizes, square) == pytest.approx(2)
    assert growth.at_size(sizes, line, 2.9e6) == pytest.approx(20 + 2.9e3)
    assert growth.at_size([10], [5], 20) == 10
    assert growth.exponent([10], [1]) is None and growth.marginal_exponent(sizes[:2], line[:2]) is None
    assert growth.marginal_exponent(sizes, [3, 2, 5]) is None


def test_a_config_on_made_shards_keeps_model_and_method(tmp_path):
    config = load_config("scale", [("data.size", "16"), ("distill.pairs", "77")])
    sized = command.config_on(config, [tmp_path / "0.tar", tmp_path / "1.tar"], tmp_path / "run")
    assert (sized.data.name, sized.data.size, sized.distill.pairs) == ("webdataset", 16, 77)
    assert sized.data.train_shards == f"{(tmp_path / '0.tar').resolve()}::{(tmp_path / '1.tar').resolve()}"
    assert sized.run.dir == str(tmp_path / "run") and config.run.dir == "runs/scale"


def test_a_size_below_what_is_held_out_is_refused(tmp_path):
    config = load_config("scale", [("run.dir", str(tmp_path))])
    with pytest.raises(UserError, match="--scale 3999 is too few: 1000 of the pairs are held out; take 4000 or more"):
        command.scale_command(config, [3999])


def test_a_stage_that_fails_is_named_with_its_last_words(tmp_path):
    (tmp_path / "c.json").write_text('{"run": {"nothing": 1}}')
    with pytest.raises(UserError, match="mdw prepare .* ended with status 2 .*config.run.nothing"):
        run_stage("prepare", tmp_path / "c.json", tmp_path / "log")
    (tmp_path / "c.json").write_text('{"run": {"dir": "x"}}')
    took = run_stage("config", tmp_path / "c.json", tmp_path / "log")
    assert took.seconds > 0 and took.processor > 0 and took.memory > 1e7


@pytest.mark.slow
def test_a_whole_run_is_measured_stage_by_stage(tmp_path, capsys):
    small = [("run.dir", str(tmp_path)), ("distill.steps", "2"), ("evaluate.steps", "20"), ("data.holdout_val", "100"),
             ("data.holdout_test", "100"), ("distill.checkpoint_every", "2")]
    command.scale_command(load_config("scale", small), [1500, 1000])
    printed = capsys.readouterr().out
    rows = (tmp_path / "scale.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(command.STAGES) and "2,900,000 pairs" in printed
