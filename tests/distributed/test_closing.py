"""Leaving the process group while one of its threads still has to let go of tensors."""

from __future__ import annotations

import subprocess
import sys

# Many tensors of one reduction, which nobody holds any more: its thread is at them, and needs Python's lock for each, when
# the group is left. torch 2.7 waits for that thread with the lock in its hand if it is left to itself.
CODE = """
import torch
import torch.distributed as dist

from vitcore.runtime.distributed import close_group

for _ in range(20):
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    tensors = [torch.ones(1) for _ in range(2000)]
    reduced = dist.group.WORLD.allreduce_coalesced(tensors)
    del tensors
    reduced.wait()
    del reduced
    close_group()
    assert not dist.is_initialized()
print("left 20 times")
"""


def test_the_group_is_left_while_its_threads_let_go_of_what_they_reduced() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "left 20 times" in done.stdout, done.stderr[-2000:]
