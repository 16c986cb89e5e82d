"""Attention rollout against the product computed by hand."""

import pytest
import torch
import torch.nn.functional as F

from vitcore.model.rollout import attention_rollout
from vitcore.model.vit import VisionTransformer, build_model


def made(pool: str) -> VisionTransformer:
    torch.manual_seed(0)
    model = build_model("ViT-digits", (8, 12), 3, pool=pool).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_it_is_the_product_of_the_blocks_attention_and_residuals(pool: str) -> None:
    model = made(pool)
    images = torch.rand(2, 1, 8, 12) * 2 - 1
    # By hand: the tokens before each block, its q and k, its softmax.
    patches = model.patch_embed.proj
    x = F.conv2d(images, patches.weight, patches.bias, stride=patches.stride).flatten(2).transpose(1, 2)
    x = x if model.cls_token is None else torch.cat([model.cls_token.expand(2, -1, -1), x], 1)
    x = x + model.pos_embed
    product = torch.eye(x.shape[1]).expand(2, -1, -1)
    for number, block in enumerate(model.blocks):
        q, k, _ = block.attn.qkv(block.norm1(x)).reshape(2, -1, 3, 4, 12).permute(2, 0, 3, 1, 4)
        a = torch.softmax(torch.einsum("bhne,bhme->bhnm", q, k) / 12**0.5, -1).mean(1)
        product = (0.5 * a + 0.5 * torch.eye(x.shape[1])) @ product
        x = block(x, model.functions, number)
    expected = product.mean(1) if pool == "gap" else product[:, 0, 1:]
    functions, logits = model.functions, model(images)
    shares = attention_rollout(model, images)
    assert shares.shape == (2, 4, 6)
    torch.testing.assert_close(shares.flatten(1), expected)
    torch.testing.assert_close(product.sum(-1), torch.ones(2, x.shape[1]))
    assert model.functions is functions and torch.equal(model(images), logits)
