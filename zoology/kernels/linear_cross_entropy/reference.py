"""Cross-entropy of a tied head in PyTorch: the logits are made, whole."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, judge: bool = True
) -> tuple[Tensor, Tensor]:
    """The same function as `zoology.kernels.linear_cross_entropy`, for hidden (M, D) or (R, M, D).

    The product is taken in the dtype of `hidden`, all that follows in float32 or better.
    """
    logits = hidden @ weight.to(hidden.dtype).mT
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.expand(logits.shape[:-1])
    loss = F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index, reduction="none"
    ).view_as(targets)
    if not judge:
        return loss, targets.new_empty(*loss.shape[:-1], 0, dtype=torch.bool)
    right = (logits.argmax(-1) == targets) & (targets != ignore_index) & ~loss.isnan()
    return loss, right
