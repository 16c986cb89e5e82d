"""The model with the kernels of a GPU is one graph to torch.compile, forward and backward, and is compiled once."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch._dynamo
from vitcore_cuda import attention

from tests.cuda.conftest import built, hyper
from vitcore.model.functions import Functions
from vitcore.model.vit import build_model, computes_narrow

SIDE, ROWS = 32, 2
WITHOUT = ("cudnn", "flash", "efficient", "fused", "beside")


def model_on_meta(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model of narrow weights on the device `meta`, which has the three operators, with a kernel's attention."""
    model = build_model("ViT-Ti_16", SIDE, 10, dropout=0.0).to("meta")
    for parameter, tensor in model.named_parameters():
        tensor.data = tensor.data.to(torch.bfloat16) if computes_narrow(parameter) else tensor.data
    own = functools.partial(getattr(attention, name), None)
    model.functions = Functions(self_attention=own, attention=functools.partial(attention.fused, None))
    return model, torch.empty(ROWS, 3, SIDE, SIDE, dtype=torch.uint8, device="meta")


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_no_kernel_breaks_the_graph(name: str) -> None:
    torch._dynamo.reset()
    model, images = model_on_meta(name)
    said = torch._dynamo.explain(model)(images, None, "pooled")
    assert (said.graph_count, said.graph_break_count) == (1, 0), said.break_reasons
    ops = [str(node.target) for graph in said.graphs for node in graph.graph.nodes]
    blocks, operator = 12, f"_scaled_dot_product_{name}_attention"
    few = int(name == "efficient")  # which answers the class token's query in the last block too
    assert sum(operator in op for op in ops) == blocks - 1 + few


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_forward_and_backward_are_traced_with_the_operator_in_both(name: str) -> None:
    torch._dynamo.reset()
    seen: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, example: Any) -> Any:
        from functorch.compile import make_boxed_func

        seen.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    from torch._dynamo.backends.common import aot_autograd

    model, images = model_on_meta(name)
    logits = torch.compile(model, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)(images)
    made = torch.autograd.grad(logits.float().sum(), list(model.parameters()))
    assert [g.dtype for g in made] == [p.dtype for p in model.parameters()]
    forward, backward = seen
    operator = f"_scaled_dot_product_{name}_attention"
    assert sum(f"{operator}.default" in op for op in forward) == 12
    assert sum(f"{operator}_backward" in op for op in backward) == 12


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_compiles_once_and_evaluation_once(precision: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    host = {"device": "cpu", "open": None, "wait": None, "probe": None, "pinned": False, "compiler": "aot_eager"}
    exe = built(
        "cuda", host, optimizer="adamw", precision=precision, disable_kernel=WITHOUT, enable_kernel=("compiled",),
        disable_pass=("capture_step",),
    )  # fmt: skip
    state = exe.init(3)
    stats = torch._dynamo.utils.counters["stats"]
    state = exe.step(state, hyper(0))
    assert stats["unique_graphs"] == 1
    state = exe.eval(state, 1)
    assert stats["unique_graphs"] == 2
    for step in range(1, 4):
        state = exe.eval(exe.step(state, hyper(step)), 1)
    assert stats["unique_graphs"] == 2 and not torch._dynamo.utils.counters["graph_break"]
