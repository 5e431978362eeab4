"""Near-duplicates swap their captions; degraded captions say less."""

import numpy as np
import pytest

from mdw_jax.data.noise import draw
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.structured_noise import GENERIC, degrade_captions, swap_similar
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError

KINDS = 40


def split(n):
    """Images of 40 kinds in random order, three captions each, which name the kind and hardly anything else."""
    kinds = np.random.default_rng(0).permutation(np.arange(n) % KINDS)
    captions = [f"{word} kind{kind} thing{kind} {image % 7}"
                for image, kind in enumerate(kinds) for word in ("a", "the", "one")]
    image_of = np.repeat(np.arange(n), 3)
    return Split(np.zeros((n, 1, 1, 3), np.uint8), tuple(captions), image_of, np.arange(3 * n)), kinds


def test_near_duplicates_swap():
    data, kinds = split(400)
    index = swap_similar(data, 1.0, np.random.default_rng(1))
    assert np.array_equal(index[index], np.arange(400))  # swaps
    assert (index != np.arange(400)).all()
    assert (kinds[index] == kinds).mean() > 0.95  # within a kind, where by chance it would be 1 in 40
    assert (np.random.default_rng(1).permutation(kinds) == kinds).mean() < 0.1


@pytest.mark.parametrize("rate", [0.2, 0.61])
def test_the_protocol_moves_the_share_asked(rate):
    data, kinds = split(401)
    pairs = Pairs("kinds", data, split(1)[0], split(1)[0])
    noise = draw(pairs, "near_duplicate", rate, 3)
    moved = len(set(noise.true_image_of[noise.mismatched]))
    assert moved == round(rate * 401) // 2 * 2 and noise.true_rate == pytest.approx(moved / 401)
    assert draw(pairs, "near_duplicate", rate, 3).sha256 == noise.sha256 != draw(pairs, "near_duplicate", rate, 4).sha256
    # All captions of an image move together.
    assert (noise.image_of.reshape(-1, 3) == noise.image_of[::3, None]).all()


def test_images_without_captions_do_no_harm():
    data = Split(np.zeros((4, 1, 1, 3), np.uint8), ("?", "a"), np.array([0, 2]), np.arange(2))
    index = swap_similar(data, 1.0, np.random.default_rng(0))
    assert sorted(index) == [0, 1, 2, 3] and (index != np.arange(4)).all()


@pytest.mark.parametrize("kind", ["generic", "truncated"])
def test_degraded_captions(kind):
    pairs = scenes(train=50, val=5, test=5, size=16)
    changed = degrade_captions(pairs, kind, 0.4, seed=0)
    now, was = changed.train.captions, pairs.train.captions
    differ = [k for k in range(len(was)) if now[k] != was[k]]
    assert len(differ) == 100  # of 250
    if kind == "generic":
        assert all(now[k] in GENERIC for k in differ)
    else:
        assert all(was[k].startswith(now[k]) and 1 <= len(now[k].split()) <= len(was[k].split()) / 2 for k in differ)
    assert changed.fingerprint != pairs.fingerprint and changed.test.fingerprint == pairs.test.fingerprint
    assert np.array_equal(changed.train.image_of, pairs.train.image_of)
    assert degrade_captions(pairs, kind, 0.4, seed=0).fingerprint == changed.fingerprint


@pytest.mark.parametrize(("kind", "rate", "message"), [("rude", 0.4, "choose one of generic, truncated"),
                                                       ("generic", 1.4, r"captions_rate must lie in \[0, 1\]")])
def test_degrade_captions_refuses(kind, rate, message):
    with pytest.raises(UserError, match=message):
        degrade_captions(scenes(train=3, val=1, test=1, size=16), kind, rate, seed=0)
