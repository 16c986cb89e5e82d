"""Muon's direction: the momentum of a matrix with all its singular values near 1 (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/).

Five steps of a quintic Newton-Schulz iteration, as torch.optim.Muon, but in f32 and not in bf16: so that a run repeats, and
because not every device multiplies bf16 by itself. The size is that of `match_rms_adamw`, 0.2 sqrt(max(rows, columns)), with
which the rates and decays of AdamW serve (Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982).

q, k and v are three maps in one matrix: each third is made orthogonal for itself, and has its own size. As one matrix they
would share the singular directions of all three (measured: https://verenalabs.com/posts/evaluating_muon__moe_in_llms, where
splitting fused projections decides whether Muon is better than AdamW).
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 5
# Largest slope at 0; the singular values end between about 0.7 and 1.2, and not at 1 (Jordan).
A, B, C = 3.4445, -4.7750, 2.0315
EPS = 1e-7


def orthogonal(matrix_RC: Tensor, name: str) -> Tensor:
    """The direction of the parameter called `name`, of the shape of `matrix_RC`: rows, columns."""
    rows, columns = matrix_RC.shape
    parts = 3 if name.endswith("qkv.weight") else 1
    x_PRC = matrix_RC.reshape(parts, rows // parts, columns)
    wide = rows // parts <= columns
    x_PRC = newton_schulz(x_PRC if wide else x_PRC.transpose(1, 2))
    x_PRC = x_PRC if wide else x_PRC.transpose(1, 2)
    return x_PRC.reshape(rows, columns) * (0.2 * max(rows // parts, columns) ** 0.5)


def newton_schulz(x_PRC: Tensor) -> Tensor:
    """Each of P matrices of R rows and at least as many columns C, with its singular values brought near 1."""
    size_P11 = (x_PRC * x_PRC).sum((1, 2), keepdim=True).sqrt()
    x_PRC = x_PRC / torch.clamp(size_P11, min=EPS)
    for _ in range(STEPS):
        gram_PRR = torch.matmul(x_PRC, x_PRC.transpose(1, 2))
        gram_PRR = gram_PRR * B + torch.matmul(gram_PRR, gram_PRR) * C
        x_PRC = x_PRC * A + torch.matmul(gram_PRR, x_PRC)
    return x_PRC
