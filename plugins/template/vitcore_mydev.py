"""vitcore-mydev: mydev as a backend of vitcore.

Nothing here may import torch at the top: a backend is read before torch is imported, so that its environment still can be
set. Import it inside kernels and functions.
"""

from vitcore.api import Backend, hookimpl, kernel

BACKEND = Backend(
    name="mydev",  # what --backend takes
    device="cpu",  # torch's name of the device type; generated without --device it is the host's, which runs at once
    imports=(),  # modules whose import registers the device with torch
    env={},  # what the vendor's libraries read when torch is imported
    probe=None,  # "module:function", without torch: None where the device can run here, else what is missing
    open=None,  # "module:function" that is called once after the imports
    failure=None,  # "module:function" that turns what the libraries raise into a sentence with a remedy, or None
    compiler=None,  # torch.compile's backend, where vitcore_kernels offers vitcore.api.COMPILED
    compiler_probe=None,  # "module:function" that says what that compiler lacks here, or None; torch-free
    compile_pays=None,  # nominal operations of a run from which --compile auto takes it; None: never
    compiles="blocks",  # what that is given, one block for all of them or the whole "model"
    wait=None,  # "module:function" that blocks until the device has done all work
    memory=None,  # "module:function" that gives the bytes that are free and those there are, for the plan of memory
    threads=None,  # "module:function" that gives the most threads of torch on the host, for devices that compute there
    # A lazy device records and is flushed. Name its flush, what it counts, and the ops that end a region:
    mark=None,  # "module:function"
    counters=None,  # "module:function" that gives compiles, cache_hits, flushes, fallbacks
    split_after=frozenset(),  # such as frozenset({"model.forward"})
    collective=None,  # torch.distributed's backend for the device's tensors; None: one process only
    precisions=("fp32",),  # and "bf16" (torch.autocast of the device), "bf16-casts" (casts in the graph)
    arithmetic=None,  # "module:function" that sets how float32 is multiplied in a precision, and says so
    narrow_weights=False,  # whether "bf16" is narrow copies of the weights, made once a step, in place of autocast
    flat=False,  # whether parameters, gradients and slots are one buffer each, for vitcore.api.BUFFERS
    tune=None,  # "module:function" that measures kernels of one op: seconds by name for a vitcore.api.Shape
    capture=None,  # "module:function" that records a region which is a whole step, and launches it as one
    pinned=False,  # whether batches lie in pinned memory of the host, from which the device copies while it computes
    prefetch=False,  # whether the next batch is put on the device while this one's step runs
    rank=0,  # --backend auto takes the highest that can run here; `vitcore backends` lists them in this order
    about="mydev, as it was generated",  # one line for `vitcore backends`
)


# One op, claimed. `when` accepts or refuses by the op's types and the number of ranks, before anything runs; what is not
# claimed runs on the reference kernels, which a kernel may call. A kernel that flushes a lazy device by itself says
# flushes=(before, inside, after); one that computes another formula on purpose says variant="...".
@kernel("opt.update", when=lambda op, world: op.args[1].ty.has("sgdm") or "only momentum SGD")
def mydev_sgdm(rt, params, state, grads, hyper, ok):
    """Momentum SGD. Call the vendor's fused update here; keep the old values where the flag `ok` is 0."""
    return rt.opt_update__reference(params, state, grads, hyper, ok)


@hookimpl
def vitcore_backends():
    return [BACKEND]


@hookimpl
def vitcore_kernels(backend):
    return [mydev_sgdm] if backend == BACKEND.name else []
