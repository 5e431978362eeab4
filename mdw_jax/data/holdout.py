"""Splits that are held out of train: by a hash of the images' names, and images that show the same on one side."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mdw_jax.data.decoding import Decoder
from mdw_jax.data.duplicates import groups, near_duplicate_groups, perceptual_hashes
from mdw_jax.data.encoded_columns import EncodedColumns
from mdw_jax.errors import UserError


class Holdouts(NamedTuple):
    """What is held out of train: see `records.build`."""

    val: int
    test: int
    seed: int
    near_duplicates: int


def hold_out(images: EncodedColumns, holdouts: Holdouts, name: str, notes: list[str],
             tools: tuple[ThreadPoolExecutor, Decoder]) -> tuple[dict[str, np.ndarray], EncodedColumns]:
    """Divide images into train and the splits that `holdouts` asks for.

    Args:
        images: all of train.
        holdouts: how many.
        name: what the data set is called.
        notes: gets what was found, in sentences.
        tools: threads, and what decodes.

    Returns:
        {split: its rows, in order}, and the images with their contents.

    Raises:
        UserError: none would be left for train.
    """
    counts = {"test": holdouts.test, "val": holdouts.val}
    if sum(counts.values()) >= len(images):
        raise UserError(f"holding out {sum(counts.values())} images leaves none of the {len(images)} that '{name}' has "
                        "for train; hold out fewer.")
    images = images.with_contents(*tools)
    group_of = _groups(images, holdouts.near_duplicates, notes, tools[0])
    order, by_group = _order(images, holdouts.seed), np.argsort(group_of, kind="stable")
    ends = np.cumsum(np.bincount(group_of))
    split_of = np.zeros(len(images), np.int8)  # 0: train
    wanted = [split for split in ("val", "test") if counts[split]]
    for split, count in counts.items():
        chosen = _draw(order[split_of[order] == 0], group_of, (by_group, ends), count)
        split_of[chosen] = 1 + wanted.index(split) if count else 0
        if len(chosen) != count:
            notes.append(f"{len(chosen)} images are held out for {split}, not {count}: those that show the same stay "
                         "together.")
    if split_of.all():
        raise UserError(f"holding out {sum(counts.values())} images leaves none of the {len(images)} that '{name}' has for "
                        "train, as images that show the same stay together; hold out fewer.")
    return {split: np.flatnonzero(split_of == n) for n, split in enumerate(["train", *wanted])}, images


def _order(images: EncodedColumns, seed: int) -> np.ndarray:
    """(N,) rows in the order of a hash of their keys."""
    hashes = bytearray()
    for key in images.keys:
        hashes += hashlib.sha256(f"{seed}/{key}".encode(errors="surrogatepass")).digest()
    words = np.frombuffer(hashes, ">u8").reshape(len(images), -1)
    return np.lexsort(words.T[::-1])  # by the first word, then by the second, ...


def _draw(free: np.ndarray, group_of: np.ndarray, groups_in_order: tuple[np.ndarray, np.ndarray], count: int) -> list[int]:
    """The first rows of `free`, `count` of them, whole groups only; if no group is small enough, the first group.

    Args:
        free: rows.
        group_of: (N,) of all rows.
        groups_in_order: all rows, sorted by group, and where each group ends in it.
        count: how many to draw.
    """
    by_group, ends = groups_in_order

    def members(group: int) -> list[int]:
        return by_group[ends[group - 1] if group else 0:ends[group]].tolist()

    chosen: list[int] = []
    seen: set[int] = set()
    for row in free if count else ():
        group = int(group_of[row])
        if group not in seen and len(chosen) + len(members(group)) <= count:
            chosen += members(group)
        seen.add(group)
        if len(chosen) == count:
            break
    return members(int(group_of[free[0]])) if count and not chosen and len(free) else chosen


def _groups(images: EncodedColumns, near_duplicates: int, notes: list[str], pool: ThreadPoolExecutor) -> np.ndarray:
    """The number of each image's group: those that show the same."""
    group_of = groups(images.contents)
    if copies := len(images) - int(group_of.max()) - 1:
        notes.append(f"{copies} images show the same as an earlier one; a held-out split gets all of such images or none.")
    if not near_duplicates:
        return group_of
    hashes = perceptual_hashes(images, pool)
    if not any(value is not None for value in hashes):
        raise UserError("data.near_duplicates compares pictures, and there are none; leave it out.")
    first: dict[int, int | None] = {}  # copies have one hash, whatever else they are near to
    hashes = [first.setdefault(group, value) for group, value in zip(group_of.tolist(), hashes, strict=True)]
    near = np.array(near_duplicate_groups(hashes, near_duplicates - 1))
    if merged := len(images) - len(np.unique(near)):
        notes.append(f"{merged} images are near-duplicates of an earlier one (perceptual hashes of fewer than "
                     f"{near_duplicates} different bits) and stay on one side as well.")
    return near
