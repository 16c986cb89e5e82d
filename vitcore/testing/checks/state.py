"""C8, C9 and C12: the state as a checkpoint, run after run, and what is left when a program is closed."""

from __future__ import annotations

import gc
import json
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from vitcore import checkpoint
from vitcore.runtime.executable import Executable, State
from vitcore.runtime.reference.optim import slots
from vitcore.runtime.trace import digest
from vitcore.testing.checks import Failure
from vitcore.testing.problem import Subject, host_leaves, reference


def checkpoint_file(exe: Executable, state: State, path: Path) -> Path:
    """The state, written as a run writes it."""
    kinds = {v.name: v.ty.kind for v in exe.module.saved}
    tensors, values = checkpoint.flatten(exe.saved(state), kinds, exe.rt.names)
    return checkpoint.save(path, tensors, values, {})


def restored(exe: Executable, path: Path) -> State:
    """The state of a checkpoint on the executable's device."""
    rt, shapes = exe.rt, [p.shape for p in exe.rt.own_params()]
    found = checkpoint.load(path)
    return exe.restore(checkpoint.unflatten(found, exe.module.saved, rt.names, shapes, slots(rt.groups), rt.device))


def _differs(one: State, other: State, names: Any) -> str | None:
    a, b = host_leaves(one, names), host_leaves(other, names)
    if a.keys() != b.keys():
        return f"{sorted(a.keys() ^ b.keys())[0]} is in one alone"
    for name, x in a.items():
        if not torch.equal(x, b[name]):
            return f"{name} by up to {float((x.double() - b[name].double()).abs().max()):.2g}"
    return None


def _travels(subject: Subject, optimizer: str) -> None:
    """Four steps at once against two, a file, the host, a file, and two."""
    spec = subject.spec(optimizer, 2)
    whole = subject.open(spec, dropout=0.1)
    straight = subject.train(whole, 4)
    with tempfile.TemporaryDirectory() as folder:
        first = subject.open(spec, dropout=0.1)
        file = checkpoint_file(first, subject.train(first, 2), Path(folder) / "device")
        first.close()
        on_host = reference(subject)
        host = on_host.open(spec, dropout=0.1)
        there = checkpoint_file(host, restored(host, file), Path(folder) / "host")
        host.close()
        last = subject.open(spec, dropout=0.1)
        state = subject.train(last, 2, restored(last, there), first=2)
        differs = _differs(_saved(whole, straight), _saved(last, state), whole.rt.names)
        last.close()
    whole.close()
    if differs:
        raise Failure(f"{optimizer}: a run that went through a checkpoint differs from one that did not: {differs}; some state "
                      "is not in the program's values: what a kernel keeps by itself is lost by a checkpoint")  # fmt: skip


def _saved(exe: Executable, state: State) -> State:
    return tuple(exe.saved(state).values())


def travels(subject: Subject) -> str:
    """C8."""
    for optimizer in ("sgdm", "adamw"):
        _travels(subject, optimizer)
    return "sgdm and adamw, 2 + 2 steps through two files and the host, bit-equal"


def fingerprint(subject: Subject) -> str:
    """Digests of what a few steps of each optimizer end in."""
    ends = {}
    for optimizer in ("sgdm", "adamw"):
        exe = subject.open(subject.spec(optimizer, 2), dropout=0.1)
        ends[optimizer] = {n: f"{digest(t):08x}" for n, t in
                           host_leaves(_saved(exe, subject.train(exe, 3)), exe.rt.names).items()}  # fmt: skip
        exe.close()
    return json.dumps(ends)


def repeatable(subject: Subject) -> str:
    """C9: in two fresh processes."""
    argv = subject.process("--fingerprint", str(subject.seed))
    runs = []
    for _ in range(2):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Failure(f"a run in a process of its own failed: {reason}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    for optimizer, one in runs[0].items():
        differ = [n for n, d in one.items() if runs[1][optimizer][n] != d]
        if differ:
            raise Failure(f"{optimizer}: two runs from one seed end in different bits, first in {differ[0]}; look for sums in "
                          "varying order, and for draws that do not come from the key")  # fmt: skip
    return "sgdm and adamw, 3 steps in two processes, bit-equal"


def reopens(subject: Subject) -> str:
    """C12: five times in one process."""
    spec = subject.spec("sgdm", 2)
    first, alive, threads = None, 0, 0
    for time in range(5):
        exe = subject.open(spec, dropout=0.1)
        state = subject.train(exe, 2)
        end = {n: t.clone() for n, t in host_leaves(_saved(exe, state), exe.rt.names).items()}
        exe.close()
        exe.close()
        del exe, state
        if first is not None and (bad := next((n for n, t in end.items() if not torch.equal(t, first[n])), None)):
            raise Failure(f"opened again in the same process, it ends in other bits, first in {bad}: something of the first "
                          "run was kept outside of the program's values")  # fmt: skip
        first = first or end
        gc.collect()
        now, running = sum(isinstance(o, torch.Tensor) for o in gc.get_objects()), threading.active_count()
        if time == 1:
            alive, threads = now, running
    if now > alive:
        raise Failure(
            f"{(now - alive) // 3} tensors are left each time that a program is closed; a kernel or hook keeps them"
        )
    if running > threads:
        raise Failure(f"{(running - threads) // 3} threads are left each time that a program is closed; stop them")
    return "five times in one process: the same bits, no tensor and no thread left"
