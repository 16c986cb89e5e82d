"""`habana_frameworks.torch.hpu.metrics`: what the device counts, as lists of pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitcore_hpusim.tensor import HpuTensor

Pairs = list[tuple[str, Any]]


class MetricNotFound(Exception):
    """hpu/metrics/exceptions.py."""


class Metric:
    """hpu/metrics/metrics.py."""

    def __init__(self, name: str) -> None:
        known = ["graph_compilation", "cpu_fallback", "memory_defragmentation"]
        known += ["recipe_cache"] if os.environ.get("PT_HPU_ENABLE_CACHE_METRICS") == "1" else []
        if name not in known:
            raise MetricNotFound(f"Metric {name} not found")
        self._name = name
        self._before = self._read()

    def name(self) -> str:
        return self._name

    def start(self) -> None:
        self.reset()

    def stop(self) -> None:
        pass

    def reset(self) -> None:
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        counts = HpuTensor.recorder.counts
        if self._name == "graph_compilation":
            return {"TotalNumber": counts.compiles, "TotalTime": int(counts.compile_seconds * 1e6)}
        if self._name == "cpu_fallback":
            return {"TotalNumber": sum(counts.fallbacks.values())}
        if self._name == "recipe_cache":
            return {"TotalHit": counts.hits, "TotalMiss": counts.compiles}
        return {"TotalNumber": 0}

    def stats(self) -> Pairs:
        pairs: Pairs = [(k, v - self._before[k]) for k, v in self._read().items()]
        if self._name == "graph_compilation":
            number, spent = pairs[0][1], pairs[1][1]
            pairs.append(("AvgTime", spent / number if number else 0))
        elif self._name == "cpu_fallback":
            pairs.append(("FallbackOps", dict(HpuTensor.recorder.counts.fallbacks)))
        elif self._name == "recipe_cache":
            pairs[1:1] = [("RecipeHit", {})]
            pairs.append(("RecipeMiss", {}))
        return pairs


_global: dict[str, Metric] = {}


def metric_global(name: str) -> Metric:
    """The metric since the process began, or its last reset."""
    if name not in _global:
        _global[name] = Metric(name)
        _global[name]._before = dict.fromkeys(_global[name]._before, 0)
    return _global[name]


@contextmanager
def metric_localcontext(name: str) -> Iterator[Metric]:
    """The metric within a block."""
    yield Metric(name)
