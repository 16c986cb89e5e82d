"""The original recipe's step under accumulation 16, as its own loop places marks, reads and barriers by hand, and as ours.

The loop follows Model-References 1.6.1, ViT/train.py:260-316, in the order of its lines: mark after forward, mark after backward,
`loss.item()`, clipping by torch, the vendor's SGD, mark, zero_grad, barrier. Both run the same model (12 blocks, narrow) on the
simulated card. Prints JSON: what the device was asked for in each step.
"""

import gc
import json
import os

from vitcore.testing.worker import opened

ours = opened("hpu-lazy", 0, simulate=True)

import habana_frameworks.torch.core as htcore  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from habana_frameworks.torch.hpex.optimizers import FusedSGD  # noqa: E402
from vitcore_hpusim.tensor import HpuTensor  # noqa: E402

from vitcore.backend import World  # noqa: E402
from vitcore.data.datasets import open_dataset  # noqa: E402
from vitcore.data.feed import Feed  # noqa: E402
from vitcore.data.order import sample_keys  # noqa: E402
from vitcore.model.dropout import dropout_keys  # noqa: E402
from vitcore.model.init import init_parameters  # noqa: E402
from vitcore.model.variants import find_variant  # noqa: E402
from vitcore.model.vit import VisionTransformer  # noqa: E402
from vitcore.runtime.executable import Executable  # noqa: E402
from vitcore.step.build import StepSpec  # noqa: E402

STEPS, ACCUMULATION, SIDE = 5, 16, 32
card = HpuTensor.recorder


def model():
    variant = find_variant("ViT-B_16").replace(width=48, heads=12, mlp=96)
    made = VisionTransformer(variant, SIDE, 10)
    init_parameters(made, torch.Generator().manual_seed(0))
    return made


def feed():
    data = open_dataset("synthetic", img_size=SIDE, channels=3, train_size=64, eval_size=8)
    return Feed(data, seed=0, micro_batch=2, accumulation=ACCUMULATION, eval_batch=4)


def counted(events, compiles):
    launched = [e for e in events if e.ops]
    return {"flushes": len(events), "launches": len(launched), "compilations": compiles,
            "largest graph": max(e.ops for e in launched), "ops": sum(e.ops for e in launched)}  # fmt: skip


def steps(act):
    seen = []
    for step in range(STEPS):
        gc.collect()
        card.events.clear()
        before = card.counts.compiles
        act(step)
        seen.append(counted(card.events, card.counts.compiles - before))
    return seen


def as_the_original():
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    store = dist.TCPStore("localhost", 0, 1, True)
    dist.init_process_group("hccl", store=store, rank=0, world_size=1)
    net, data = model().to("hpu").train(), feed()
    optimizer = FusedSGD(net.parameters(), lr=0.06, momentum=0.9, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    net.zero_grad()
    htcore.mark_step()
    cursor, losses = 0, []

    def act(step):
        nonlocal cursor
        for micro in range(ACCUMULATION):
            batch, cursor = data.next_train(cursor)
            x, y = (batch.images.to("hpu").float() / 127.5 - 1), batch.labels.to("hpu")
            keys = torch.from_numpy(sample_keys(0, batch.positions.numpy(), 0)).to("hpu")
            with dropout_keys(keys):
                loss = F.cross_entropy(net(x).view(-1, 10), y.view(-1))
            loss = loss / ACCUMULATION
            htcore.mark_step()
            loss.backward()
            htcore.mark_step()
            if (micro + 1) % ACCUMULATION == 0:
                losses.append(loss.item() * ACCUMULATION)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                scheduler.step()
                optimizer.step()
                htcore.mark_step()
                optimizer.zero_grad(set_to_none=False)  # the default of the original's torch
            dist.barrier()

    seen = steps(act)
    data.close()
    dist.destroy_process_group()
    return seen


def as_ours():
    spec = StepSpec(name="original", optimizer="sgdm", accumulation=ACCUMULATION)
    exe = Executable(ours.lowered(spec), ours.backend, ours.kernels, model(), feed(), World(), guard=False)
    state = exe.init(0)
    card.mark()

    def act(step):
        nonlocal state
        rates = {"lr": 0.06 / (1 + step), "momentum": 0.9, "weight_decay": 0.0, "max_norm": 1.0}
        state = exe.step(state, rates)

    seen = steps(act)
    exe.close()
    return seen


print(json.dumps({"original": as_the_original(), "ours": as_ours()}))
