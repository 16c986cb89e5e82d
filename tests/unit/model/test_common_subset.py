"""The model, dropout and loss on torch's own recording device, as a stand-in for all recording devices."""

import subprocess
import sys

import pytest

# In a process of its own: the device is initialised once a process, and a failed graph would poison the others.
CODE = """
import copy
import torch, torch._lazy, torch._lazy.ts_backend, torch._lazy.metrics as metrics
from vitcore.model.dropout import dropout_keys
from vitcore.model.init import init_parameters
from vitcore.model.loss import cross_entropy
from vitcore.model.vit import build_model

torch.set_num_threads(1)
torch._lazy.ts_backend.init()
torch._C._jit_set_profiling_executor(False)
model = build_model("ViT-digits", 8, 10, depth=2, dropout=0.1, attention_dropout=0.2)
init_parameters(model, torch.Generator().manual_seed(0))
torch.nn.init.normal_(model.head.weight)
data = [torch.randn(4, 1, 8, 8), torch.tensor([1, 2, 3, 4]), torch.tensor([1.0, 1.0, 0.0, 1.0]),
        torch.tensor([1, 22222222, -333333333, 4], dtype=torch.int32)]

def step(model, images, labels, weight, keys):
    with dropout_keys(keys):
        loss = cross_entropy(model(images), labels, weight, 0.1)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

expected = step(model, *data)
model, data = copy.deepcopy(model).to("lazy"), [tensor.to("lazy") for tensor in data]
torch._lazy.mark_step()
for _ in range(2):
    metrics.reset()
    values = step(model, *data)
    torch._lazy.mark_step()
    counts = {name: metrics.counter_value(name) for name in metrics.counter_names()}
left = {name: count for name, count in counts.items() if name.startswith("aten::") and count}
assert not left, f"left the recorded graph: {left}"
assert counts.get("CachedCompile") == 1 and not counts.get("UncachedCompile"), counts
# Of each tensor's own size: gradients of a large head are large.
worst = max(float((a - b.cpu()).detach().abs().max() / a.detach().abs().max()) for a, b in zip(expected, values))
assert worst < 1e-5, worst
"""


def test_a_step_is_one_graph_without_fallbacks_and_with_the_same_values() -> None:
    pytest.importorskip("torch._lazy.ts_backend")
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
