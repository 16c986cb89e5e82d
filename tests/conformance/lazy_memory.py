"""300 steps on lazysim: MiB in use after 100 of them and at the end."""

import json
import re
from pathlib import Path

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)

from vitcore.testing.problem import hyper  # noqa: E402

exe = lazy.open(lazy.spec("adamw", 2), dropout=0.1)
state, sizes = exe.init(0), []
for step in range(300):
    state = exe.step(state, hyper(step % 7))
    if step % 10 == 9:
        state, _ = exe.log(state)
    if step in (99, 299):
        exe.rt.wait()
        sizes.append(int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
print(json.dumps(sizes))
