"""vitcore-lazysim: torch's own lazy device as a vitcore backend, for machines without an accelerator."""

from vitcore.api import Backend, hookimpl, kernel


@kernel("opt.update", when=lambda op, world: op.args[1].ty.has("sgdm"), flushes=(0, 0, 1))
def sgdm_then_mark(rt, params, state, grads, hyper, ok):
    """Momentum SGD that flushes after itself, as a fused vendor kernel does."""
    out = rt.opt_update__reference(params, state, grads, hyper, ok)
    rt.mark()
    return out


@hookimpl
def vitcore_backends():
    return [
        Backend(
            name="lazysim",
            device="lazy",
            open="vitcore_lazysim:open_device",
            mark="torch._lazy:mark_step",
            wait="torch._lazy:wait_device_ops",
            counters="vitcore_lazysim:counters",
            split_after=frozenset({"model.forward"}),
            precisions=("fp32", "bf16-casts"),
            about="torch's lazy tensors on the processor",
        )
    ]


@hookimpl
def vitcore_kernels(backend):
    return [sgdm_then_mark] if backend == "lazysim" else []


def open_device():
    import torch
    import torch._lazy.ts_backend

    torch._lazy.ts_backend.init()
    torch._C._jit_set_profiling_executor(False)  # else the second run of each graph is slow


def counters():
    import torch._lazy.metrics as metrics

    held = {name: metrics.counter_value(name) for name in metrics.counter_names()}
    compiles, hits = held.get("UncachedCompile", 0), held.get("CachedCompile", 0)
    fallbacks = sum(count for name, count in held.items() if name.startswith("aten::"))
    return {"compiles": compiles, "cache_hits": hits, "flushes": compiles + hits, "fallbacks": fallbacks}
