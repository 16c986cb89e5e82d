"""Every optimizer, and frozen parameters, for four steps on lazysim and on the reference: what is counted, and how far apart."""

import json

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)

from vitcore.groups import parameter_groups  # noqa: E402
from vitcore.step.build import StepSpec  # noqa: E402
from vitcore.testing.problem import hyper, reference  # noqa: E402

HEAD, BLOCK = r"^(?!head\.)", r"^blocks\.0\."
CASES = (("lamb", None), ("lion", None), ("muon", None), ("muon", BLOCK), ("adamw", HEAD), ("sgdm", BLOCK))
STEPS = 4


def run(of, spec):
    exe = of.open(spec, guard=True)
    state, counts = of.start(exe), []
    for step in range(STEPS):
        before = exe.stats()
        state = exe.step(state, hyper(step))
        after = exe.stats()
        counts.append((after.compiles - before.compiles, after.fallbacks - before.fallbacks))
    exe.rt.wait()
    ends = [p.detach().cpu().double().flatten() for p in state[0]]
    exe.close()
    return ends, counts


said = {}
for kind, freeze in CASES:
    groups = parameter_groups(kind, freeze=freeze, undecayed=r"bias$|norm", layer_decay=1.0, depth=3)
    spec = StepSpec(name="lazy", optimizer=kind, accumulation=2, groups=groups)
    (ends, counts), (want, _) = run(lazy, spec), run(reference(lazy), spec)
    # The share of numbers that are equal: Lion takes the sign of a gradient, which rounding decides where it should be 0.
    near = [float((abs(a - b) < 1e-4).double().mean()) for a, b in zip(ends, want)]
    said[f"{kind} {freeze}"] = {"counts": counts, "near": sorted(near)[len(near) // 2], "worst": min(near)}
print(json.dumps(said))
