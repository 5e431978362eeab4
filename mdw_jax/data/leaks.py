"""What of val and test is in train already: images that show the same, captions that say the same."""

from collections.abc import Mapping, Sequence

import numpy as np


def shared_content(contents: Mapping[str, np.ndarray], captions: Mapping[str, Sequence[str]]) -> list[str]:
    """Count what splits share, in sentences; [] for nothing.

    Retrieval of what was trained on is no retrieval: such images and captions make scores too good.

    Args:
        contents: {split: (N,) uint64, a digest of what each image shows; 0 where that is not known}.
        captions: {split: its captions}.
    """
    notes = []
    others = {caption for split in ("val", "test") for caption in captions[split]}
    repeats = {caption for caption in captions["train"] if caption in others}
    for split in ("val", "test"):
        of_split = contents[split]
        copies = np.isin(of_split[of_split != 0], contents["train"]).sum()
        if copies:
            notes.append(f"{copies} of {len(contents[split])} images of {split} are in train too: scores on them are too "
                         "good; take them out, or hold splits out of train, which keeps such images together.")
        repeated = sum(caption in repeats for caption in captions[split])
        if repeated:
            notes.append(f"{repeated} of {len(captions[split])} captions of {split} are captions of train too.")
    return notes
