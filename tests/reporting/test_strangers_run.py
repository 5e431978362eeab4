"""A run folder from a stranger: its page holds nothing from outside of it."""

import base64
import shutil

import pytest
from test_run_report import change_report, make_run, page_of

from mdw_jax.errors import UserError
from mdw_jax.io.contained import all_inside, inside

SECRET = b"\x89PNG secret of this machine"


def elsewhere(run, place):
    """A file or directory of the run moved out, with a link in its place."""
    target = run.parent / "elsewhere" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(run / place, target)
    (run / place).symlink_to(target)


def test_paths_stay_inside(tmp_path):
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "secret").touch()
    (tmp_path / "link").symlink_to("run")
    assert inside(tmp_path / "link", "deep/new") == tmp_path / "link" / "deep" / "new"  # the folder itself may be linked
    (tmp_path / "run" / "circle").symlink_to("circle")
    (tmp_path / "run" / "deep" / "out").symlink_to(tmp_path / "secret")
    for place in ("../secret", str(tmp_path / "secret"), "circle", "deep/out", "deep/../../secret", "a\0"):
        with pytest.raises(UserError, match="leads out of"):
            inside(tmp_path / "run", place)
    with pytest.raises(UserError, match="leads out of"):
        all_inside(tmp_path / "run", "deep")


@pytest.mark.parametrize("place", ["scores.csv", "report.json", "distilled/mdw/set_0", "distilled/mdw/set_0/nearest.json",
                                   "experts/dtcl", "experts/dtcl/log.jsonl"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, place):
    run = make_run(tmp_path / "run", pairs=12)
    elsewhere(run, place)
    with pytest.raises(UserError, match="leads out of"):
        page_of(run)


@pytest.mark.parametrize("key", ["sets", "experts"])
@pytest.mark.parametrize("place", ["../other/distilled/mdw/set_0", "{}/other/distilled/mdw/set_0"])
def test_report_json_cannot_name_what_lies_outside(tmp_path, key, place):
    run = make_run(tmp_path / "run", pairs=12)
    make_run(tmp_path / "other", pairs=12)
    place = place.format(tmp_path)
    change_report(run, lambda presets: presets[1].update({key: [place] if key == "sets" else place}))
    with pytest.raises(UserError, match="leads out of"):
        page_of(run)


def test_a_picture_must_be_one_and_inside(tmp_path):
    run = make_run(tmp_path / "run", pairs=12)
    (run / "certificate.csv").write_text(
        "preset,eta,source,loss,measure,value,trivial\nmdw,0.4,known,gce 0.7,clean_risk,0.123,1.38\n")
    (run / "figures").mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    (run / "figures" / "certificate.png").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of"):
        page_of(run)
    (run / "figures" / "certificate.png").unlink()
    (run / "figures" / "certificate.png").write_bytes(SECRET)
    with pytest.raises(UserError, match="is no PNG file"):
        page_of(run)
    assert base64.b64encode(SECRET).decode() not in "".join(path.read_text() for path in run.glob("*.html"))
