"""torch.autocast("hpu") by the bridge's tables, which are not CUDA's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import on_card

bf16, f32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("act", "dtype"),
    [
        (lambda x: x @ x, bf16),
        (lambda x: F.linear(x, x), bf16),
        (lambda x: torch.addmm(x, x, x), bf16),
        (lambda x: x.softmax(-1), bf16),
        (lambda x: torch.log_softmax(x, -1), bf16),
        (lambda x: x.softmax(-1, dtype=f32), f32),
        (lambda x: x * x, bf16),
        (lambda x: x * 2.0, bf16),
        (lambda x: x.mean(), bf16),
        (lambda x: x.mean(-1), bf16),
        (lambda x: F.dropout(x, 0.5, True), bf16),
        (lambda x: F.layer_norm(x, (4,), torch.ones(4).to("hpu"), torch.zeros(4).to("hpu")), bf16),
        (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), bf16),
        (lambda x: F.conv2d(x[None, None], x[None, None]), bf16),
        (lambda x: x.to(bf16) / 3.0, f32),
        (lambda x: x.to(bf16).exp(), f32),
        (lambda x: F.cross_entropy(x.to(bf16), torch.zeros(4, dtype=torch.int64).to("hpu")), f32),
        (lambda x: x.to(bf16) + x, f32),
        (lambda x: x.to(bf16) + x.to(bf16), bf16),
        (lambda x: torch.cat([x.to(bf16), x]), f32),
        (lambda x: F.gelu(x), f32),
        (lambda x: x.sum(), f32),
    ],
)
def test_an_op_computes_in_the_precision_of_the_table(act: Any, dtype: torch.dtype, card: Any) -> None:
    with torch.autocast("hpu", bf16):
        assert act(on_card(4, 4)).dtype == dtype
    assert act(on_card(4, 4)).dtype in (f32, bf16)


def test_a_layer_norm_narrows_its_input_alone(card: Any) -> None:
    x, weight = on_card(4, 4), (torch.ones(4) * (1 + 2**-12)).to("hpu")
    with torch.autocast("hpu", bf16):
        y = F.layer_norm(x, (4,), weight)
    assert y.dtype == bf16, "as the bridge: the first argument is narrow, weight and bias stay as they are"


def test_gradients_come_back_in_the_dtype_of_the_parameters(card: Any) -> None:
    w = on_card(4, 4).requires_grad_()
    with torch.autocast("hpu", bf16):
        loss = (on_card(4, 4) @ w).float().pow(2).mean()
    loss.backward()
    assert w.grad is not None and w.grad.dtype == f32 and torch.isfinite(w.grad.cpu()).all()


_OTHER = """
import os, torch
from vitcore.backend import Backend
from vitcore_hpusim.install import install
install(Backend(name="hpu-lazy", device="hpu", env={"PT_HPU_LAZY_MODE": "1"}))
x = torch.randn(4, 4).to("hpu")
with torch.autocast("hpu", torch.bfloat16):
    print((x @ x).dtype, x.softmax(-1).dtype, (x.to(torch.bfloat16) * 1).dtype, x.mean().dtype)
"""


def test_files_of_the_environment_replace_the_whole_lists(tmp_path: Path) -> None:
    import os

    (tmp_path / "low").write_text("softmax\n")
    (tmp_path / "wide").write_text("mul\nmatmul\n")
    lists = {"PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": str(tmp_path / "low"),
             "PT_HPU_AUTOCAST_FP32_OPS_LIST": str(tmp_path / "wide")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _OTHER], env={**os.environ, **lists}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["torch.float32", "torch.bfloat16", "torch.float32", "torch.float32"]
