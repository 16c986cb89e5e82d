"""What the device counts, by the vendor's metrics (bridge: HF/hpu/metrics/metrics.py): pairs, since the process began."""

from __future__ import annotations


def counts() -> dict[str, int]:
    """Compilations, launches of compiled graphs, and ops that fell back to the host. A mark that finds nothing to launch
    is no flush here."""
    from habana_frameworks.torch.hpu.metrics import metric_global

    counted = eager_counts()
    cache = dict(metric_global("recipe_cache").stats())
    return {**counted, "cache_hits": cache["TotalHit"], "flushes": cache["TotalHit"] + cache["TotalMiss"]}


def eager_counts() -> dict[str, int]:
    """As `counts`; in eager mode nothing is marked, and nothing counted that hits a cache."""
    from habana_frameworks.torch.hpu import synchronize
    from habana_frameworks.torch.hpu.metrics import metric_global

    synchronize()  # a thread carries marks out; what is counted is complete once the device is done
    compiled, fell_back = metric_global("graph_compilation"), metric_global("cpu_fallback")
    return {
        "compiles": dict(compiled.stats())["TotalNumber"],
        "cache_hits": 0,
        "fallbacks": dict(fell_back.stats())["TotalNumber"],
    }
