"""Dropped branches and dropped patches: what remains is what timm computes, and the rates are those that are asked for."""

from __future__ import annotations

import functools

import pytest
import timm
import torch
from torch import Tensor

from vitcore.errors import VitcoreError
from vitcore.model.dropout import dropout_keys
from vitcore.model.init import init_parameters
from vitcore.model.vit import VisionTransformer, build_model

BATCH = 512


def model(**overrides: float) -> VisionTransformer:
    made = build_model("ViT-digits", 8, 10, **overrides)
    init_parameters(made, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
    return made.train()


def images(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def keys(batch: int = BATCH) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (batch,), generator=torch.Generator().manual_seed(3)).to(torch.int32)


def factors(rate: float) -> list[Tensor]:
    """The factors of each branch, in order, with the rate that the last block has."""
    seen: list[Tensor] = []
    made = model(drop_path=rate)
    for block in made.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.extend(args[3] or ()))
    with torch.no_grad(), dropout_keys(keys()):
        made(images())
    return seen


def test_the_rate_grows_linearly_from_the_first_block_to_the_last() -> None:
    seen = factors(0.4)
    depth = model().variant.depth
    assert len(seen) == 2 * (depth - 1), "nothing of the first block is dropped"
    for i, values in enumerate(seen):
        rate = 0.4 * (i // 2 + 1) / (depth - 1)
        assert values.unique().tolist() == [0.0, pytest.approx(1 / (1 - rate))]
        share = float((values == 0).double().mean())
        assert abs(share - rate) < 4.5 * (rate * (1 - rate) / BATCH) ** 0.5  # 1 in 150,000 by chance


def test_every_branch_and_every_sample_draws_for_itself() -> None:
    seen = torch.stack([values[:, 0, 0] == 0 for values in factors(0.4)]).double()
    together = torch.corrcoef(seen) - torch.eye(len(seen))
    assert together.abs().max() < 0.2


def test_what_is_kept_is_what_timm_computes_of_the_same_branches() -> None:
    """timm's own DropPath draws otherwise, so its modules are given our factors."""
    made = model(drop_path=0.5)
    v = made.variant
    other = timm.models.VisionTransformer(
        img_size=8, patch_size=v.patch, in_chans=1, num_classes=10, embed_dim=v.width, depth=v.depth, num_heads=v.heads,
        mlp_ratio=v.mlp / v.width, global_pool=v.pool if v.pool == "token" else "avg", class_token=v.pool == "token",
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=v.layer_norm_eps), fc_norm=False,
        act_layer=functools.partial(torch.nn.GELU, "tanh" if v.gelu == "tanh" else "none"),
    ).train()  # fmt: skip
    other.load_state_dict(made.state_dict())
    seen = factors(0.5)

    class Given(torch.nn.Module):
        def __init__(self, factor: Tensor) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    for number, block in enumerate(other.blocks):
        if number:
            block.drop_path1, block.drop_path2 = map(Given, seen[2 * number - 2 : 2 * number])
    with torch.no_grad(), dropout_keys(keys()):
        assert torch.allclose(made(images()), other(images()), atol=2e-5)


def test_evaluation_drops_nothing() -> None:
    made = model(drop_path=0.5).eval()
    with torch.no_grad():
        assert torch.equal(made(images(4)), model().eval()(images(4)))


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(VitcoreError, match=r"drop_path=1\.0 is not a rate"):
        model(drop_path=1.0)


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_kept_patches_are_the_sequence_without_the_others(pool: str) -> None:
    made = model(pool=pool)
    tokens = made.grid[0] * made.grid[1]
    everything = torch.arange(tokens).expand(4, -1)
    assert torch.allclose(made(images(4), everything), made(images(4)), atol=1e-6)
    some = torch.tensor([[0, 3, 5], [1, 2, 7], [0, 1, 2], [4, 5, 6]])
    seen: list[Tensor] = []
    made.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made(images(4), some)
    made(images(4))
    slots = 1 if pool == "token" else 0
    kept, whole = seen
    assert kept.shape[1] == slots + 3
    for row in range(4):
        assert torch.equal(kept[row, slots:], whole[row, slots:][some[row]])
        assert torch.equal(kept[row, :slots], whole[row, :slots])
