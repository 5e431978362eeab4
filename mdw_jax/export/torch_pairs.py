"""A distilled set as a PyTorch `Dataset`. Needs torch; `mdw_jax.torch_dataset` makes one."""

import torch

from mdw_jax.export.torch_tensors import correspondence, to_torch
from mdw_jax.io.distilled_set import DistilledSet


class TorchPairs(torch.utils.data.Dataset):
    """The rows of a distilled set, each (image, text features, row).

    Images are float32 (C, H, W), or video clips (T, C, H, W), at the size at which models see them (those that are stored
    smaller are enlarged here); text features are float32.

    Attributes:
        step_sizes: {"image", "text"} learned step sizes of the student's plain SGD, or {}.
        loss: name of the distillation loss that the set was distilled for.
        tau: temperature of its logits; None where the card does not say.
        card: the contents of card.json.
    """

    def __init__(self, distilled: DistilledSet, card: dict):
        arrays = to_torch({"images": distilled.images, "texts": distilled.texts})
        images = arrays["images"].movedim(-1, -3)
        if distilled.seen_size:
            images = torch.nn.functional.interpolate(images, (distilled.seen_size,) * 2, mode="bilinear")
        self.images, self.texts = images.contiguous(), arrays["texts"]
        self._p = to_torch({f"correspondence/{name}": array for name, array in distilled.correspondence.items()})
        self.step_sizes, self.alpha, self.loss = dict(distilled.step_sizes), distilled.alpha, distilled.loss
        self.card, self.tau = card, card.get("config", {}).get("model", {}).get("tau")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.images[row], self.texts[row], row

    def __repr__(self) -> str:
        return (f"TorchPairs({len(self)} pairs: images {'x'.join(map(str, self.images.shape))}, texts "
                f"{'x'.join(map(str, self.texts.shape))}; loss {self.loss})")

    def correspondence(self, rows=None) -> torch.Tensor:
        """The block of the correspondence P at some rows, which is the target of a batch of these rows.

        Args:
            rows: (b,) distinct rows, a tensor or a list; None: all.

        Returns:
            (b, b).
        """
        rows = torch.arange(len(self)) if rows is None else torch.as_tensor(rows)
        return correspondence(self._p, rows, self.alpha)
