"""Splits that are held out of train: by a hash of the images' names, and images that show the same on one side."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from mdw_jax.data.decoding import Decoder, Encoded, content_digests
from mdw_jax.data.duplicates import groups, near_duplicate_groups, perceptual_hashes
from mdw_jax.errors import UserError


class Holdouts(NamedTuple):
    """What is held out of train: see `records.build`."""

    val: int
    test: int
    seed: int
    near_duplicates: int


def hold_out(images: Sequence[Encoded], holdouts: Holdouts, name: str, notes: list[str],
             tools: tuple[ThreadPoolExecutor, Decoder]) -> tuple[dict[str, list[int]], list[Encoded]]:
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
    images, group_of = _groups(images, holdouts.near_duplicates, notes, tools)
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of):
        members.setdefault(group, []).append(row)
    order = sorted(range(len(images)),
                   key=lambda row: hashlib.sha256(f"{holdouts.seed}/{images[row].key}".encode()).digest())
    split_of: dict[int, str] = {}
    for split, count in counts.items():
        chosen = _draw([row for row in order if row not in split_of], members, group_of, count)
        split_of |= dict.fromkeys(chosen, split)
        if len(chosen) != count:
            notes.append(f"{len(chosen)} images are held out for {split}, not {count}: those that show the same stay "
                         "together.")
    if len(split_of) == len(images):
        raise UserError(f"holding out {sum(counts.values())} images leaves none of the {len(images)} that '{name}' has for "
                        "train, as images that show the same stay together; hold out fewer.")
    wanted = ["train", *(split for split in ("val", "test") if counts[split])]
    return {split: [row for row in range(len(images)) if split_of.get(row, "train") == split] for split in wanted}, images


def _draw(free: list[int], members: Mapping[int, list[int]], group_of: Sequence[int], count: int) -> list[int]:
    """The first rows of `free`, `count` of them, whole groups only; if no group is small enough, the first group."""
    chosen: list[int] = []
    seen: set[int] = set()
    for row in free:
        group = group_of[row]
        if group not in seen and len(chosen) + len(members[group]) <= count:
            chosen += members[group]
        seen.add(group)
        if len(chosen) == count:
            break
    return members[group_of[free[0]]] if count and not chosen and free else chosen


def _groups(images: Sequence[Encoded], near_duplicates: int, notes: list[str],
            tools: tuple[ThreadPoolExecutor, Decoder]) -> tuple[list[Encoded], list[int]]:
    """The images with their contents, and the number of the group of each: those that show the same."""
    pool, decoder = tools
    contents = content_digests(images, pool, decoder)
    images = [image._replace(content=content) for image, content in zip(images, contents, strict=True)]
    group_of = groups(contents)
    if copies := len(images) - len(set(group_of)):
        notes.append(f"{copies} images show the same as an earlier one; a held-out split gets all of such images or none.")
    if near_duplicates:
        hashes = perceptual_hashes(images, pool)
        if not any(value is not None for value in hashes):
            raise UserError("data.near_duplicates compares pictures, and there are none; leave it out.")
        first: dict[int, int | None] = {}  # copies have one hash, whatever else they are near to
        hashes = [first.setdefault(group, value) for group, value in zip(group_of, hashes, strict=True)]
        near = near_duplicate_groups(hashes, near_duplicates - 1)
        if merged := len(images) - len(set(near)):
            notes.append(f"{merged} images are near-duplicates of an earlier one (perceptual hashes of fewer than "
                         f"{near_duplicates} different bits) and stay on one side as well.")
        return images, near
    return images, group_of
