"""The input's part of the gates: x W_ihᵀ and the biases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Scan, wide
from ..rules import without_padding
from . import multiply
from .arithmetic import wide_product


def project_input(scan: Scan) -> Tensor:
    """gx [T, B, G*H] = x W_ihᵀ + b_ih, for every kind of input; differentiable."""
    if scan.kind == "gates":
        return scan.input
    return projected_by(scan, weight_of_input(scan), scan.weight("b_ih"))


def projected_by(scan: Scan, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
    """The same of other weights; of a scan whose gates are not projected."""
    if scan.kind == "dense":
        return F.linear(scan.input, w_ih, b_ih)
    rows = _columns(w_ih, scan.input)  # a one-hot row times Wᵀ is a column of W
    return rows if b_ih is None else rows + b_ih


def _columns(w_ih: Tensor, tokens: Tensor) -> Tensor:
    """[T, B, G*H]: column tokens[t, b] of w_ih [G*H, I]."""
    if not w_ih.requires_grad:
        return F.embedding(tokens, w_ih.t())
    # so that its gradient is laid out like w_ih, not transposed
    return w_ih.index_select(1, tokens.flatten()).t().unflatten(0, tokens.shape)


def own_projection(scan: Scan) -> Tensor:
    """``project_input`` in memory of its own, for a kernel to overwrite."""
    if scan.kind == "gates":
        return scan.input.clone(memory_format=torch.contiguous_format)
    if scan.kind == "tokens":
        return project_input(without_padding(scan)).contiguous()
    rows = multiply.product(
        scan.input.flatten(0, 1), weight_of_input(scan).t(), scan.weight("b_ih")
    )
    return rows.unflatten(0, scan.input.shape[:2])


def multiplied_by_kernel(scan: Scan) -> bool:
    """Whether x W_ihᵀ + b_ih is a product that our kernels on the CPU make in the call of the loop:
    of all steps at once, or a few steps at a time."""
    if scan.kind != "dense" or not 0 < scan.input.shape[2] <= multiply.MOST_STEPS:
        return False
    return multiply.is_ours(scan.input, *scan.weights)


def biased_projection(scan: Scan) -> Tensor:
    """x W_ihᵀ and every bias that can be added to it [T, B, G*H], in memory of its own and, of
    16-bit storage, float32."""
    gates, bias = _wide_product_of_input(scan), input_bias(scan)
    return gates if bias is None else gates.add_(bias.flatten())


def wide_projection(scan: Scan) -> Tensor:
    """``project_input`` in memory of its own and, of 16-bit storage, float32."""
    gates, b_ih = _wide_product_of_input(scan), scan.weight("b_ih")
    return gates if b_ih is None else gates.add_(b_ih)


def _wide_product_of_input(scan: Scan) -> Tensor:
    """x W_ihᵀ [T, B, G*H]."""
    dtype = wide(scan.dtype)
    if scan.kind == "gates":
        return scan.input.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if scan.kind == "tokens":
        tokens = without_padding(scan).input
        return F.embedding(tokens, weight_of_input(scan).t()).to(dtype).contiguous()
    rows = wide_product(scan.input.flatten(0, 1), weight_of_input(scan).t())
    return rows.unflatten(0, scan.input.shape[:2])


def input_bias(scan: Scan) -> Tensor | None:
    """[G, H] in the wide dtype: both biases, but for the recurrent one of the gate whose product
    enters by itself; None without bias."""
    b_hh, b_ih = scan.weight("b_hh"), scan.weight("b_ih")
    if b_hh is None:
        return None
    spec, dtype = scan.spec, wide(b_hh.dtype)
    total = b_hh.to(dtype, copy=True).unflatten(0, (spec.gates, -1))
    if spec.own_product_gate is not None:
        total[spec.own_product_gate] = 0
    return total if b_ih is None else total.add_(b_ih.to(dtype).view_as(total))


def own_product_bias(scan: Scan) -> Tensor | None:
    """[H]: the recurrent bias that is no part of ``input_bias``, None where there is none."""
    b_hh, spec = scan.weight("b_hh"), scan.spec
    if b_hh is None or spec.own_product_gate is None:
        return None
    return b_hh.unflatten(0, (spec.gates, -1))[spec.own_product_gate]


def weight_of_input(scan: Scan) -> Tensor:
    """w_ih [G*H, I]."""
    weight = scan.weight("w_ih")
    assert weight is not None
    return weight
