import dataclasses
import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mdw_jax.errors import UserError
from mdw_jax.io import checksums
from mdw_jax.io import distilled_set as module
from mdw_jax.io.distilled_set import DistilledSet, byte_budget, load_distilled, load_for_display, save_distilled
from mdw_jax.io.files import write_atomically


def make_set(kind="lowrank", m=5, side=4, channels=3, d=7, rank=2, steps=True):
    normal = lambda *shape: np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    return DistilledSet(
        images=abs(normal(m, side, side, channels)) % 1, texts=normal(m, d),
        correspondence={"identity": {}, "full": {"matrix": normal(m, m)},
                        "lowrank": {"diag": normal(m), "left": normal(m, rank), "right": normal(m, rank)}}[kind],
        step_sizes={"image": float(np.float32(0.1)), "text": 0.25} if steps else {}, alpha=1.1, loss="wbce")


def assert_same(a, b):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.texts, b.texts)
    assert set(a.correspondence) == set(b.correspondence)
    for name in a.correspondence:
        np.testing.assert_array_equal(a.correspondence[name], b.correspondence[name])
    assert (a.step_sizes, a.alpha, a.loss) == (b.step_sizes, b.alpha, b.loss)


@pytest.mark.parametrize("kind", ["identity", "full", "lowrank"])
@pytest.mark.parametrize("steps", [True, False])
def test_round_trip_is_exact_and_the_card_describes_it(tmp_path, kind, steps):
    saved = make_set(kind, steps=steps)
    save_distilled(tmp_path / "set", saved, {"dataset": "scenes", "sha256": "overwritten"})
    loaded, card = load_distilled(tmp_path / "set")
    assert_same(loaded, saved)
    assert card["dataset"] == "scenes" and card["shapes"]["images"] == [5, 4, 4, 3]
    assert card["byte_budget"] == byte_budget(saved) and len(card["sha256"]) == 64
    assert sorted(os.listdir(tmp_path / "set")) == ["SHA256SUMS", "card.json", "distilled.safetensors"]


def test_the_same_set_is_the_same_file_and_strides_do_not_matter(tmp_path):
    plain = make_set()
    strided = dataclasses.replace(plain, images=np.asfortranarray(plain.images), texts=plain.texts[::-1].copy()[::-1])
    for name, value in (("a", plain), ("b", plain), ("strided", strided)):
        save_distilled(tmp_path / name, value, {})
    assert_same(load_distilled(tmp_path / "strided")[0], plain)
    assert len({(tmp_path / name / module.TENSORS).read_bytes() for name in ("a", "b", "strided")}) == 1


def test_byte_budget_by_hand():
    budget = byte_budget(make_set())
    assert budget == {"images": 5 * 48, "texts": 5 * 7 * 2, "correspondence": (5 + 10 + 10) * 2, "step_sizes": 8,
                      "total": 240 + 70 + 50 + 8, "pairs_equivalent": 368 / (48 + 14)}
    assert byte_budget(make_set("identity", steps=False))["pairs_equivalent"] == 5


def test_a_full_correspondence_of_499_pairs_costs_more_than_one_pair():
    full = make_set("full", m=499, side=2, d=151296 - 12, steps=False)  # as many numbers as 224 x 224 x 3 + 768
    numbers, text = 499 * 499, 151296 - 12
    assert byte_budget(full)["pairs_equivalent"] - 499 == pytest.approx(numbers * 2 / (12 + 2 * text), rel=1e-6)


def test_images_of_half_the_side_take_a_quarter_of_the_bytes():
    small = dataclasses.replace(make_set("identity", m=20, steps=False), seen_size=8)
    large = make_set("identity", m=5, side=8, steps=False)
    assert byte_budget(small)["images"] == byte_budget(large)["images"] == 5 * 8 * 8 * 3
    assert byte_budget(dataclasses.replace(small, seen_size=0))["total"] == byte_budget(small)["total"]
    # One real pair has an image of the side that models see.
    assert byte_budget(small)["pairs_equivalent"] == (5 * 192 + 20 * 14) / (192 + 14)


def test_the_side_at_which_images_are_seen_is_stored(tmp_path):
    plain, small = make_set(), dataclasses.replace(make_set(), seen_size=8)
    assert plain.seen_shape == (4, 4, 3) and small.seen_shape == (8, 8, 3)
    card = {}
    for name, value in (("plain", plain), ("small", small)):
        save_distilled(tmp_path / name, value, {})
        loaded, card[name] = load_distilled(tmp_path / name)
        assert loaded.seen_size == value.seen_size
        assert_same(loaded, value)
    assert "seen_size" not in card["plain"] and card["small"]["seen_size"] == 8
    with safe_open(tmp_path / "plain" / module.TENSORS, "np") as file:  # the same file as before there was such a side
        assert json.loads(file.metadata()[module._FORMAT]) == {"alpha": 1.1, "loss": "wbce"}


@pytest.mark.parametrize("side", [3, -1, 8.0, True, None])
def test_a_side_that_images_cannot_be_seen_at(side):
    with pytest.raises(UserError, match="cannot be seen at side"):
        dataclasses.replace(make_set(), seen_size=side)
    wide = dataclasses.replace(make_set(), images=np.zeros((5, 4, 6, 3), np.float32))
    with pytest.raises(UserError, match="square images"):
        dataclasses.replace(wide, seen_size=8)


@pytest.mark.parametrize("missing, match", [("card.json", "card.json is missing"),
                                            ("distilled.safetensors", "distilled.safetensors is missing")])
def test_missing_files(tmp_path, missing, match):
    with pytest.raises(UserError, match="no distilled set .*nowhere"):
        load_distilled(tmp_path / "nowhere")
    save_distilled(tmp_path, make_set(), {})
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=match):
        load_distilled(tmp_path)


def test_every_kind_of_damage_is_noticed(tmp_path):
    save_distilled(tmp_path, make_set(), {})
    path = tmp_path / module.TENSORS
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", whole + b"\0",
                    *(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1:] for k in range(0, len(whole), 97))):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="sha256 differs"):
            load_distilled(tmp_path)
    path.write_bytes(whole)
    load_distilled(tmp_path)


@pytest.mark.parametrize("card, match", [("{", "cannot be read"), ("[]", "cannot be read .*not an object"),
                                         ("{}", "sha256 differs")])
def test_damaged_card(tmp_path, card, match):
    save_distilled(tmp_path, make_set(), {})
    (tmp_path / module.CARD).write_text(card)
    with pytest.raises(UserError, match="card.json .*SHA256SUMS beside it lists another"):
        load_distilled(tmp_path)
    (tmp_path / checksums.SUMS).unlink()  # as of a set of an earlier version
    with pytest.raises(UserError, match=match):
        load_distilled(tmp_path)


def rewrite(folder, change, metadata=None):
    """Replace the tensor file by one with other contents whose sha256 is right."""
    arrays = {"images": np.zeros((3, 2, 2, 1), np.float32), "texts": np.zeros((3, 4), np.float32), **change}
    metadata = {module._FORMAT: '{"alpha": 1.0, "loss": "nce"}'} if metadata is None else metadata
    save_file({k: v for k, v in arrays.items() if v is not None}, folder / module.TENSORS, metadata=metadata)
    sha = module.hashlib.sha256((folder / module.TENSORS).read_bytes()).hexdigest()
    (folder / module.CARD).write_text(json.dumps({"sha256": sha}))


@pytest.mark.parametrize("change, match", [
    ({"texts": np.zeros((4, 4), np.float32)}, r"texts of shape \(3, d\)"),
    ({"images": np.zeros((3, 2, 2), np.float32)}, r"images must be \(M, H, W, C\)"),
    ({"images": np.zeros((3, 2, 2, 1), np.uint8)}, "'images' must be a float32 .* not uint8"),
    ({"images": np.full((3, 2, 2, 1), np.nan, np.float32)}, "'images' holds NaN"),
    ({"texts": np.full((3, 4), np.inf, np.float32)}, "'texts' holds NaN or infinite"),
    ({"correspondence.matrix": np.zeros((3, 2), np.float32)}, "correspondence of 3"),
    ({"correspondence.diag": np.zeros(3, np.float32)}, "correspondence of 3"),
    ({"step_size.image": np.array(0.1, np.float32)}, "step sizes"),
    ({"step_size.image": np.array(np.nan, np.float32), "step_size.text": np.array(1, np.float32)}, "'image' is nan"),
    ({"texts": None}, "not a distilled set of format"),
])
def test_wrong_contents(tmp_path, change, match):
    rewrite(tmp_path, {})
    assert load_distilled(tmp_path)[0].loss == "nce"
    rewrite(tmp_path, change)
    with pytest.raises(UserError, match=match) as error:
        load_distilled(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {module._FORMAT: "{"}])
def test_a_foreign_tensor_file(tmp_path, metadata):
    rewrite(tmp_path, {}, metadata)
    with pytest.raises(UserError, match="not a distilled set of format"):
        load_distilled(tmp_path)


@pytest.mark.parametrize("dies_in", ["SHA256SUMS", "distilled.safetensors", "card.json"])
def test_an_interrupted_save_leaves_no_card(tmp_path, monkeypatch, dies_in):
    save_distilled(tmp_path, make_set(), {})

    def write(path, data):
        if path.name == dies_in:
            raise KeyboardInterrupt
        return write_atomically(path, data)

    monkeypatch.setattr(checksums, "write_atomically", write)
    with pytest.raises(KeyboardInterrupt):
        save_distilled(tmp_path, make_set("full"), {})
    with pytest.raises(UserError, match="card.json is missing"):
        load_distilled(tmp_path)


def test_a_card_that_json_cannot_hold_spares_the_old_set(tmp_path):
    save_distilled(tmp_path, make_set(), {"old": True})
    with pytest.raises(TypeError):
        save_distilled(tmp_path, make_set("full"), {"bad": object()})
    assert load_distilled(tmp_path)[1]["old"]


def test_a_file_cannot_choose_what_is_imported(tmp_path):
    save_distilled(tmp_path, dataclasses.replace(make_set(), loss="evil_module:loss"), {})
    for allowed in (None, "wbce", "evil_module:other"):
        with pytest.raises(UserError, match="names the loss 'evil_module:loss' from outside this package"):
            load_distilled(tmp_path, allowed)
    assert load_distilled(tmp_path, "evil_module:loss")[0].loss == "evil_module:loss"
    assert load_for_display(tmp_path)[0].loss == "evil_module:loss"


@pytest.mark.parametrize("settings", ['{"alpha": 1.0, "loss": 3}', '{"alpha": "1", "loss": "nce"}',
                                      '{"alpha": true, "loss": "nce"}', '{"alpha": null, "loss": "nce"}',
                                      '{"alpha": 1.0, "loss": "a b"}', '{"alpha": 1.0, "loss": "nce\\n"}'])
def test_settings_of_another_type(tmp_path, settings):
    rewrite(tmp_path, {}, {module._FORMAT: settings})
    with pytest.raises(UserError, match="'(alpha|loss)' is "):
        load_distilled(tmp_path)


@pytest.mark.parametrize("change", [{"step_sizes": [0.1, 0.2]}, {"step_sizes": {"image": "a", "text": 1.0}},
                                    {"correspondence": None}, {"alpha": float("inf")}, {"loss": None}])
def test_parts_of_another_type(change):
    with pytest.raises(UserError, match=f"distilled '({next(iter(change))}|image)'"):
        dataclasses.replace(make_set(), **change)


def test_p_is_stored_in_half_precision_where_that_loses_nothing(tmp_path):
    """Rounded to half precision, as `to_distilled_set` does, P takes 2 bytes an entry; any other P is kept as it is."""
    p = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float16).astype(np.float32)
    halved = dataclasses.replace(make_set(), correspondence={"matrix": p})
    exact = dataclasses.replace(halved, correspondence={"matrix": p + np.float32(1e-5)})
    for name, distilled, dtype in (("half", halved, np.float16), ("exact", exact, np.float32)):
        save_distilled(tmp_path / name, distilled, {})
        assert load_file(tmp_path / name / "distilled.safetensors")["correspondence.matrix"].dtype == dtype
        loaded, _ = load_distilled(tmp_path / name)
        np.testing.assert_array_equal(loaded.correspondence["matrix"], distilled.correspondence["matrix"])
