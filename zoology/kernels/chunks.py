"""A recurrence over a piece of a sequence, chunk by chunk."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Chunked = Callable[..., tuple[Tensor, Tensor]]
"""(state or None, inputs (B, H, N, C, ...)) -> outputs (B, H, N C, dv), state: N chunks of C tokens."""


def over_chunks(
    chunked: Chunked, state: Tensor | None, inputs: Sequence[Tensor], chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Whole chunks together, then the tokens that are left as one.

    Args:
        chunked: computes chunks of equal size.
        state: (B, H, dk, dv) before the piece, or None at the beginning.
        inputs: (B, H, T, ...), of which the second is k (B, H, T, dk) and the third v (B, H, T, dv).
        chunk_size: C.

    Returns:
        o (B, H, T, dv), and the state after the piece.
    """
    _, k, v, *_ = inputs
    time = k.shape[2]
    whole = time - time % chunk_size
    outputs = []
    for start, stop in ((0, whole), (whole, time)):
        if stop > start:
            chunks = (x[:, :, start:stop].unflatten(2, (-1, min(chunk_size, stop - start))) for x in inputs)
            o, state = chunked(state, *chunks)
            outputs.append(o)
    if not outputs:  # no token: nothing comes out, and the state stays
        outputs = [v]
        state = state if state is not None else k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    assert state is not None
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), state
