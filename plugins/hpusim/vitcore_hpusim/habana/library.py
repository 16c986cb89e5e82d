"""Building `habana_frameworks.torch` in `sys.modules`, where nothing real can be hidden by it."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from vitcore_hpusim.habana import hccl, kernels, metrics, normalization, optimizers, stepping
from vitcore_hpusim.recorder import Recorder

ROOT = "habana_frameworks"


def build(recorder: Recorder) -> None:
    """Make the modules, once."""
    if ROOT in sys.modules:
        return
    _module(ROOT, __simulator__="hpusim", __version__="0+simulated")
    _module(f"{ROOT}.torch")
    core = {"mark_step": stepping.mark_step, "iter_mark_step": stepping.iter_mark_step, "is_lazy": stepping.is_lazy,
            "add_step_closure": stepping.add_step_closure}  # fmt: skip
    _module(f"{ROOT}.torch.core", **core)
    _module(f"{ROOT}.torch.core.step_closure", _mark_step_if_lazy=stepping.mark_if_lazy)
    _module(f"{ROOT}.torch.utils")
    _module(f"{ROOT}.torch.utils.internal", is_lazy=stepping.is_lazy)
    _module(f"{ROOT}.torch.hpu", **{k: v for k, v in vars(torch.hpu).items() if not k.startswith("__")})
    _module(f"{ROOT}.torch.hpu.metrics", metric_global=metrics.metric_global, metric_localcontext=metrics.metric_localcontext,
            MetricNotFound=metrics.MetricNotFound)  # fmt: skip
    _module(f"{ROOT}.torch.hpex")
    _module(f"{ROOT}.torch.hpex.optimizers", FusedSGD=optimizers.FusedSGD, FusedAdamW=optimizers.FusedAdamW)
    _module(f"{ROOT}.torch.hpex.normalization", FusedClipNorm=normalization.FusedClipNorm)
    _module(f"{ROOT}.torch.hpex.kernels", FusedSDPA=kernels.FusedSDPA)
    _module(f"{ROOT}.torch.distributed")
    _module(f"{ROOT}.torch.distributed.hccl", initialize_distributed_hpu=hccl.initialize_distributed_hpu)
    hccl.register()


def _module(name: str, **held: Any) -> None:
    made = types.ModuleType(name, "SIMULATED by hpusim: no part of the vendor's library.")
    made.__path__ = []  # a package, whose parts are here already
    made.__dict__.update(held)
    sys.modules[name] = made
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, made)
