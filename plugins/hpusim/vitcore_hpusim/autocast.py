"""What torch.autocast("hpu") does to an op, by the bridge's tables (gaudi-pytorch-bridge v1.19.0, hpu_ops/autocast_helpers.h).

They are not CUDA's: softmax, log_softmax, layer_norm (its input alone), mean, mul and dropout are narrowed, division is widened,
and additions follow the widest operand. Casts of weights are not kept. A file named in the environment replaces a whole list.
Names are those of aten functions; forms in place, with `out=`, and of the backward are never cast.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch._C import DispatchKey

from vitcore_hpusim.flushing import aten
from vitcore_hpusim.recorder import rebuilt
from vitcore_hpusim.tensor import HpuTensor

LOWER = """addmm addbmm batch_norm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d dot dropout
feature_dropout group_norm instance_norm layer_norm leaky_relu linear matmul mean mm mul mv softmax log_softmax
scaled_dot_product_attention""".split()
LOWER_FIRST = "layer_norm group_norm instance_norm batch_norm".split()
FP32 = """acos addcdiv asin atan2 bilinear binary_cross_entropy binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss
cosine_similarity cross_entropy_loss dist div divide embedding embedding_bag erfinv exp expm1 hinge_embedding_loss huber_loss
kl_div l1_loss log log10 log1p log2 logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss pdist
poisson_nll_loss pow reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softplus tan topk triplet_margin_loss truediv
true_divide""".split()
PROMOTE = "add addcmul addcdiv cat div exp mul pow sub iadd truediv stack".split()
LISTS = {"PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": LOWER, "PT_HPU_AUTOCAST_FP32_OPS_LIST": FP32}

_libraries: list[Any] = []


def policies() -> dict[str, str]:
    """Each op's policy, by the lists of the environment where they are named: `lower` before `fp32` before `promote`."""
    lower, fp32 = (_listed(variable, standard) for variable, standard in LISTS.items())
    chosen = dict.fromkeys(PROMOTE, "promote") | dict.fromkeys(fp32, "fp32") | dict.fromkeys(lower, "lower")
    return {op: "lower_first" if kind == "lower" and op in LOWER_FIRST else kind for op, kind in chosen.items()}


def _listed(variable: str, standard: list[str]) -> list[str]:
    path = os.environ.get(variable)
    if not path:
        return standard
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError as e:  # as the bridge does: it warns and goes on with its own list
        print(f"hpusim: {variable}={path} cannot be read ({e.strerror}); the standard list is used")
        return standard


def register() -> None:
    """Register the kernels that cast. Without any, torch refuses every op under torch.autocast("hpu")."""
    through = torch.library.Library("_", "IMPL")
    through.fallback(torch.library.fallthrough_kernel, "AutocastHPU")
    library = torch.library.Library("aten", "IMPL")
    _libraries.extend((through, library))
    for name, policy in policies().items():
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            op = getattr(packet, overload)
            if overload.endswith("out") or op._schema.is_mutable or not _takes_tensors(op):
                continue
            library.impl(name if overload == "default" else f"{name}.{overload}", _kernel(op, policy), "AutocastHPU")


def _takes_tensors(op: Any) -> bool:
    return any("Tensor" in str(a.type) for a in op._schema.arguments)


def _kernel(op: Any, policy: str) -> Any:
    key = torch._C.DispatchKeySet(DispatchKey.AutocastHPU)

    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            narrow = torch.get_autocast_dtype("hpu")
            flat, spec = _flat(args, kwargs)
            if policy == "fp32":
                to = torch.float32
            elif policy == "promote":
                to = torch.float32 if any(_casts(x) and x.dtype == torch.float32 for x in flat) else narrow
            else:
                to = narrow
            upto = 1 if policy == "lower_first" else len(flat)
            flat = [x.to(to) if i < upto and _casts(x) and x.dtype != to else x for i, x in enumerate(flat)]
            args, kwargs = rebuilt(flat, spec)
            return op(*args, **kwargs)

    return cast


def _casts(value: Any) -> bool:
    return isinstance(value, HpuTensor) and value.is_floating_point() and value.dtype != torch.float64


def _flat(args: Any, kwargs: Any) -> tuple[list[Any], tuple[Any, ...]]:
    flat: list[Any] = []
    spec: list[Any] = []
    for name, value in (*((None, a) for a in args), *kwargs.items()):
        many = isinstance(value, (list, tuple))
        count = len(value) if many else -1
        spec.append(count if name is None else (name, count))
        flat += value if many else [value]
    return flat, tuple(spec)
