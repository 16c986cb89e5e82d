"""Steps with and without blocks that compute twice: what they end in, and what the third step compiled and flushed."""

import json
from dataclasses import asdict

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)

from vitcore.backend import World  # noqa: E402
from vitcore.runtime.executable import Executable  # noqa: E402
from vitcore.runtime.trace import digest  # noqa: E402
from vitcore.step.build import build  # noqa: E402
from vitcore.step.lowering import Lowering  # noqa: E402
from vitcore.step.pipeline import lower  # noqa: E402
from vitcore.testing.problem import feed, host_leaves, model  # noqa: E402

said = {}
for precision in ("fp32", "bf16-casts"):
    for remat in ("none", "blocks"):
        spec = lazy.spec("adamw", 2)
        module = lower(build(spec), Lowering(lazy.backend, lazy.kernels, precision, remat=remat))
        own = model(dropout=0.1)
        exe = Executable(module, lazy.backend, lazy.kernels, own, feed(0, spec, World()))
        state = lazy.train(exe, 3)
        exe.rt.wait()
        before, calls = asdict(exe.stats()), []
        handle = own.blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        state = lazy.train(exe, 2, state, first=3)
        exe.rt.wait()
        after = asdict(exe.stats())
        handle.remove()
        leaves = host_leaves(tuple(exe.saved(state).values()), exe.rt.names)
        said[f"{precision} {remat}"] = {
            "end": {n: digest(t) for n, t in leaves.items()}, "calls": len(calls),
            **{n: after[n] - before[n] for n in ("compiles", "flushes", "fallbacks", "host_reads")},
        }  # fmt: skip
        exe.close()
print(json.dumps(said))
