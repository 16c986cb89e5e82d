"""The same steps with marks at random places between ops: what they end in, and how many marks there were."""

import json
import random

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)

from vitcore.backend import resolve  # noqa: E402
from vitcore.runtime.trace import digest  # noqa: E402
from vitcore.testing.problem import host_leaves  # noqa: E402

mark, ends, marks = resolve(lazy.backend.mark), [], []
for seed in range(6):
    draw, count = random.Random(seed), 0

    def sometimes(name, kernel, draw=draw, seed=seed):
        def marked(*args, **kwargs):
            global count
            out = kernel(*args, **kwargs)
            if seed and draw.random() < 0.3:
                count += 1
                mark()
            return out

        return marked

    exe = lazy.open(lazy.spec("adamw", 2), dropout=0.1, wrap=sometimes)
    state = lazy.train(exe, 4)
    ends.append(
        [f"{n}:{digest(t):08x}" for n, t in host_leaves(tuple(exe.saved(state).values()), exe.rt.names).items()]
    )
    marks.append(count)
    exe.close()
print(json.dumps({"ends": [json.dumps(e) for e in ends], "marks": marks}))
