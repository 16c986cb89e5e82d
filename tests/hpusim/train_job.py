"""Twenty steps of digits with a backend's reference kernels: what the run ends in, as one digest a program.

`python train_job.py BACKEND FOLDER` prints JSON: digests by optimizer and accumulation.
"""

import hashlib
import json
import sys
from pathlib import Path

from vitcore.config import Config
from vitcore.plan import make_plan
from vitcore.runtime.opening import set_environment

BACKEND, FOLDER = sys.argv[1:]


def plan(optimizer, accumulation):
    return make_plan(
        Config(
            name=f"{optimizer}-{accumulation}", dataset="digits-tune", train_batch_size=32, eval_batch_size=90, num_steps=20,
            gradient_accumulation_steps=accumulation, optimizer=optimizer, learning_rate=0.003, weight_decay=0.05, dropout=0.1,
            decay_norms_and_biases=False, augment_rotate=10.0, log_every=7, eval_every=10, threads=1, backend=BACKEND,
            simulate=BACKEND != "cpu", disable_kernel=("all",), output_dir=FOLDER,
        )
    )  # fmt: skip


CASES = [("sgdm", 16), ("adamw", 1)]
plans = {case: plan(*case) for case in CASES}
set_environment(plans[CASES[0]].backend, plans[CASES[0]].plugins)

from vitcore.training import Trainer  # noqa: E402

ends = {}
for case in CASES:
    result = Trainer(plans[case], quiet=True).run()
    state = Path(result.checkpoint) / "state.safetensors"
    ends["-".join(map(str, case))] = hashlib.sha256(state.read_bytes()).hexdigest()
print(json.dumps(ends))
