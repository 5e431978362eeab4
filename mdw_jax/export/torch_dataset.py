"""A distilled set as a PyTorch `Dataset`. Needs the package torch; nothing else of mdw_jax imports this.

    pairs = mdw_jax.torch_dataset("runs/quickstart/export/mdw-0")
    for images, texts, rows in torch.utils.data.DataLoader(pairs, 128, shuffle=True):
        logits = image_branch(images) @ text_branch(texts).T / pairs.tau
        loss = soft_loss(logits, pairs.correspondence(rows))  # pairs.loss says which: the dataset card spells it out
"""

from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled

try:
    import torch
except ImportError as error:
    raise UserError("a PyTorch data set needs torch: pip install 'mdw-jax[torch]'.") from error

from mdw_jax.export.torch_tensors import correspondence, to_torch  # noqa: E402


class TorchPairs(torch.utils.data.Dataset):
    """Rows of a distilled set: (image float32 (C, H, W), or a clip (T, C, H, W); text features float32; row).

    step_sizes: {"image", "text"} learned step sizes of the student's plain SGD, or {}. loss: name of the soft-target
    loss it was distilled for. tau: temperature of its logits (None where the card does not say). card: card.json.
    """

    def __init__(self, distilled, card: dict):
        arrays = to_torch({"images": distilled.images, "texts": distilled.texts})
        self.images, self.texts = arrays["images"].movedim(-1, -3).contiguous(), arrays["texts"]
        self._p = to_torch({f"correspondence/{name}": array for name, array in distilled.correspondence.items()})
        self.step_sizes, self.alpha, self.loss = dict(distilled.step_sizes), distilled.alpha, distilled.loss
        self.card, self.tau = card, card.get("config", {}).get("model", {}).get("tau")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int):
        return self.images[row], self.texts[row], row

    def correspondence(self, rows=None):
        """The block of P at `rows` x `rows`, (b, b), the target of a batch; without rows, all of P.

        rows: (b,) distinct ones, a tensor or a list.
        """
        rows = torch.arange(len(self)) if rows is None else torch.as_tensor(rows)
        return correspondence(self._p, rows, self.alpha)


def torch_dataset(path) -> TorchPairs:
    """The distilled set in the folder `path`: an export, or a set of a run. Nothing in it can run code.

    Raises UserError where `load_distilled` does.
    """
    return TorchPairs(*load_distilled(path))
