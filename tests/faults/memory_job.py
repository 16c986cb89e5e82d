"""`vitcore train ARGS...` in a process that may take so many more MiB than it has when torch is loaded."""

import resource
import sys
from pathlib import Path

import torch
import torch.utils.tensorboard

import vitcore.train
import vitcore.training
from vitcore.cli import run

torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
sizes = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = 1024 * int(sizes["VmSize"].split()[0]) + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(run(vitcore.train.main, sys.argv[2:]))
