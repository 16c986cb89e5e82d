"""The op that changes a batch on the device: against loops over single pictures, and torchvision's own functions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rig import HYPER, SEED, open_program, run, spec
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitcore.data.augment import Augment
from vitcore.data.datasets import open_dataset
from vitcore.data.draws import draw_batch
from vitcore.data.feed import Feed
from vitcore.errors import VitcoreError
from vitcore.runtime.reference.augment import augment
from vitcore.runtime.reference.data import DeviceBatch

B, SIDE = 16, 12
ALL = Augment(flip=True, erase=0.7, mixup=0.8, cutmix=1.0)


def batch(weight: Tensor | None = None) -> DeviceBatch:
    g = torch.Generator().manual_seed(0)
    weight = torch.ones(B) if weight is None else weight
    positions = np.arange(40, 40 + B)
    draws = draw_batch(SEED, positions, weight, ALL, (SIDE, SIDE))
    images = torch.rand(B, 3, SIDE, SIDE, generator=g) * 2 - 1
    return DeviceBatch(images, torch.arange(B) % 7, weight, torch.from_numpy(positions), draws)


def runtime() -> Any:
    return SimpleNamespace(device=torch.device("cpu"), places={})


def by_hand(given: DeviceBatch) -> tuple[list[Tensor], list[int]]:
    """The pictures one by one, by torchvision's functions and slices."""
    d, single = given.draws, []
    for row in range(B):
        x = TF.hflip(given.images[row]) if d["flip"][row] else given.images[row].clone()
        top, left, bottom, right = (int(n) for n in d["erase"][row])
        single.append(TF.erase(x, top, left, bottom - top, right - left, torch.zeros(1)))
    mixed = []
    for row in range(B):
        own, other, blend = single[row], single[row ^ 1], d["blend"][row]
        x = own * blend + other * (1 - blend)
        top, left, bottom, right = (int(n) for n in d["box"][row])
        x[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        mixed.append(x)
    return mixed, [int(given.labels[row ^ 1]) for row in range(B)]


def test_a_batch_is_its_pictures_changed_one_by_one() -> None:
    given = batch()
    d = given.draws
    assert d["flip"].any() and (d["erase"][:, 2] > 0).any() and (d["box"][:, 2] > 0).any() and (d["blend"] < 1).any()
    out = augment(runtime(), given, "flip|erase|mix")
    want, partner = by_hand(given)
    assert torch.allclose(out.images, torch.stack(want), atol=1e-6)
    assert out.draws["partner"].tolist() == partner
    assert torch.equal(out.labels, given.labels) and torch.equal(out.weight, given.weight)


def test_what_is_not_asked_for_is_left_alone() -> None:
    given = batch()
    out = augment(runtime(), given, "flip")
    flipped = torch.stack([x.flip(-1) if f else x for x, f in zip(given.images, given.draws["flip"])])
    assert torch.equal(out.images, flipped) and "partner" not in out.draws


def test_a_picture_that_could_not_be_read_is_mixed_into_none() -> None:
    weight = torch.ones(B)
    weight[4] = 0.0
    given = batch(weight)
    assert given.draws["own"][5] == given.draws["own"][4] == 1
    out = augment(runtime(), given, "mix")
    assert torch.equal(out.images[5], given.images[5])


def test_a_whole_step_takes_the_draws_and_both_labels() -> None:
    def feed() -> Feed:
        data = open_dataset("digits-tune", img_size=8)
        return Feed(data, seed=SEED, micro_batch=8, augment=Augment(flip=True, mixup=0.8, cutmix=1.0))

    own = open_program(spec("sgdm", augment=("flip", "mix")), feed=feed())
    plain = open_program(spec("sgdm"), feed=feed())
    mixed, unmixed = (exe.log(run(exe, 3))[1]["loss"] for exe in (own, plain))
    assert mixed != unmixed and np.isfinite(mixed)


def test_two_ranks_see_the_pictures_that_one_sees() -> None:
    from vitcore.runtime.reference.data import put

    rt = SimpleNamespace(device=torch.device("cpu"), places={})

    def stream(world: int) -> Tensor:
        feeds = [Feed(open_dataset("synthetic", img_size=SIDE, channels=3), seed=SEED, micro_batch=8 // world,
                      world_size=world, rank=rank, augment=ALL) for rank in range(world)]  # fmt: skip
        rows: list[Tensor] = []
        for cursor in (0, 8, 16):
            rows += [augment(rt, put(rt, one.next_train(cursor)[0]), "flip|erase|mix").images for one in feeds]
        for one in feeds:
            one.close()
        return torch.cat(rows)

    assert torch.equal(stream(1), stream(2)) and torch.equal(stream(1), stream(4))


def test_a_part_that_is_unknown_is_refused() -> None:
    with pytest.raises(VitcoreError, match="'turn'; name some of flip, erase and mix"):
        open_program(spec("sgdm", augment=("flip", "turn")))


def test_patches_are_left_out_in_a_whole_step() -> None:
    data = open_dataset("digits-tune", img_size=8)
    feed = Feed(data, seed=SEED, micro_batch=8, augment=Augment(patch_dropout=0.5), tokens=16)
    exe = open_program(spec("sgdm", patch_dropout=0.5), feed=feed)
    seen: list[int] = []
    exe.rt.model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    state = exe.step(exe.init(SEED), HYPER)
    exe.eval(state, 1)
    whole = exe.rt.model.pos_embed.shape[1]
    tokens = exe.rt.model.grid[0] * exe.rt.model.grid[1]
    assert seen == [whole - tokens + round(tokens / 2), whole]
