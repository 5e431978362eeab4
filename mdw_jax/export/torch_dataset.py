"""`torch_dataset`: a distilled set for training in PyTorch.

    pairs = mdw_jax.torch_dataset("runs/quickstart/export/mdw-0")
    for images, texts, rows in torch.utils.data.DataLoader(pairs, 128, shuffle=True):
        logits = image_branch(images) @ text_branch(texts).T / pairs.tau
        loss = distillation_loss(logits, pairs.correspondence(rows))  # `pairs.loss`; the dataset card defines it
"""

from typing import TYPE_CHECKING

from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_for_display

if TYPE_CHECKING:
    from mdw_jax.export.torch_pairs import TorchPairs


def torch_dataset(path) -> "TorchPairs":
    """Open a distilled set as a PyTorch `Dataset`. Nothing in its files can run code.

    Args:
        path: the directory of an export, or of a set of a run.

    Raises:
        UserError: torch is not installed, or `load_for_display` refuses the set.
    """
    try:
        import torch  # noqa: F401  # an optional dependency
    except ImportError as error:
        raise UserError("a PyTorch data set needs torch: pip install 'mdw-jax[torch]'.") from error
    from mdw_jax.export.torch_pairs import TorchPairs

    return TorchPairs(*load_for_display(path))
