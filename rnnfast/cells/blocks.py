"""The block-diagonal product: each head multiplies its own part of the units."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def block_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` with N block-diagonal matrices, one block a head.

    out[b, n, k, o] = Σ_i x[b, k, i] weight[n, k, o, i] with x seen as [B, heads, H/heads], the last
    three axes of it in one: ``chunk(N, -1)`` gives what each of the matrices made.

    Args:
        x: [B, H].
        weight: [N, heads, H'/heads, H/heads]; with N = G and H' = H a recurrent weight
            (``recurrent="G, heads, H/heads, H/heads"``).
        bias: [N*H'] or None.

    Returns:
        [B, N*H'].

    Raises:
        ValueError: a weight that is not of four axes, or does not fit x.
    """
    if has_torch_function((x, weight, bias)):  # for those who take it as one call
        return handle_torch_function(block_linear, (x, weight, bias), x, weight, bias)
    if weight.dim() != 4:
        raise ValueError(f"block_linear: weight should have 4 axes, got: {list(weight.shape)}")
    _, heads, _, width = weight.shape
    if x.shape[-1] != heads * width:
        raise ValueError(
            f"block_linear: a weight of {list(weight.shape)} takes {heads} x {width} units, got: "
            f"{x.shape[-1]}"
        )
    made = torch.einsum("bki,nkoi->bnko", x.unflatten(-1, (heads, width)), weight).flatten(-3)
    return made if bias is None else made + bias
