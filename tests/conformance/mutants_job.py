"""`python mutants_job.py host|lazy [all]`: the checks that must catch the mutants, or all checks, and what they say, as JSON.

One process for all mutants of a device, as each opens in the same way; C9 and C10 start their own.
"""

import json
import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import vitcore_mutants

from vitcore.testing import worker
from vitcore.testing.checks import CHECKS

device, every = sys.argv[1], sys.argv[2:] == ["all"]
chosen = [m for m in vitcore_mutants.MUTANTS.values() if (m.backend.mark is not None) == (device == "lazy")]
said = {}
worker.opened(chosen[0].backend.name, 0)  # each mutant is another backend of one device, which opens once a process
from vitcore.testing.problem import subject  # noqa: E402

for mutant in chosen:
    # Where all are asked: the others first, as the one that catches it may leave something behind.
    names = [*(n for n in CHECKS if every and n != mutant.check), mutant.check]
    said[mutant.name] = {n: worker.answer(subject(mutant.backend.name), n) for n in names}
if device == "host":  # what is sound is asked for its values alone
    said |= {name: {"C3": worker.answer(subject(name), "C3")} for name in vitcore_mutants.SOUND}
print(json.dumps(said))
