"""Feature files: the forms that are read, and the ones that are refused."""

import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.models.text.precomputed import precomputed_features

IDS = np.array([4, 0, 4])


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def test_int8_rows_are_scaled_and_picked_by_caption_number(tmp_path, rows):
    scale = np.abs(rows).max(1) / 127
    quantised = np.rint(rows / scale[:, None]).astype(np.int8)
    np.savez(tmp_path / "f.npz", features_q=quantised, scale=scale)
    features = precomputed_features(tmp_path / "f.npz", IDS)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, [scale[i] * quantised[i].astype(float) for i in IDS], rtol=1e-6)
    assert np.abs(features - rows[IDS]).max() <= scale.max() * 0.51


def test_plain_float_files_give_their_rows(tmp_path, rows):
    np.save(tmp_path / "f.npy", rows.astype(np.float64))
    np.savez_compressed(tmp_path / "f.npz", features=rows)
    for name in ("f.npy", "f.npz"):
        features = precomputed_features(tmp_path / name, IDS)
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, rows[IDS])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no text feature file .*f.npz"):
        precomputed_features(tmp_path / "f.npz", IDS)


@pytest.mark.parametrize("name", ["f.npz", "f.npy"])
@pytest.mark.parametrize("share", [0, 0.3, 0.95])
def test_a_truncated_file_is_refused(tmp_path, rows, name, share):
    path = tmp_path / name
    np.save(path, rows) if name == "f.npy" else np.savez(path, features=rows)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="damaged, truncated or of another kind"):
        precomputed_features(path, IDS)


def test_other_files_are_refused(tmp_path, rows):
    (tmp_path / "f.txt").write_text("hello")
    with pytest.raises(UserError, match="of another kind"):
        precomputed_features(tmp_path / "f.txt", IDS)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="of another kind"):
        precomputed_features(tmp_path / "pickled.npy", IDS)
    np.savez(tmp_path / "f.npz", images=rows)
    with pytest.raises(UserError, match="holds \\['images'\\] but no text features"):
        precomputed_features(tmp_path / "f.npz", IDS)


def test_wrong_shapes_and_types_are_refused(tmp_path, rows):
    np.save(tmp_path / "f.npy", rows[0])
    with pytest.raises(UserError, match=r"float32 of shape \(5,\)"):
        precomputed_features(tmp_path / "f.npy", IDS)
    np.save(tmp_path / "f.npy", rows.astype(np.int8))  # quantised, but nothing says by how much
    with pytest.raises(UserError, match="are int8"):
        precomputed_features(tmp_path / "f.npy", IDS)
    np.savez(tmp_path / "f.npz", features_q=rows.astype(np.int8), scale=np.ones(3, np.float32))
    with pytest.raises(UserError, match="6 rows of `features_q` but `scale`"):
        precomputed_features(tmp_path / "f.npz", IDS)


@pytest.mark.parametrize("ids", [[0, 6], [-1, 2]])
def test_caption_numbers_without_a_row_are_refused(tmp_path, rows, ids):
    np.save(tmp_path / "f.npy", rows)
    with pytest.raises(UserError, match=f"6 rows but the captions are numbered {ids[0]} to {ids[1]}"):
        precomputed_features(tmp_path / "f.npy", ids)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(tmp_path, rows, value):
    rows[4, 2] = value
    np.save(tmp_path / "f.npy", rows)
    with pytest.raises(UserError, match="NaN or infinite features for 2 captions .first: row 4."):
        precomputed_features(tmp_path / "f.npy", IDS)
    precomputed_features(tmp_path / "f.npy", [0, 5])  # rows that nobody asks for do no harm
