"""Initialisation: the distributions of the original recipe, from one generator alone."""

import math

import pytest
import torch

from vitcore.errors import VitcoreError
from vitcore.model.init import init_parameters
from vitcore.model.variants import Variant
from vitcore.model.vit import VisionTransformer, parameter_names

WIDE = Variant(name="wide", patch=8, width=192, depth=2, heads=3, mlp=320, img_size=32)


def initialised(seed: int = 0) -> VisionTransformer:
    model = VisionTransformer(WIDE, 32, 5)
    init_parameters(model, torch.Generator().manual_seed(seed))
    return model


def test_the_same_generator_gives_the_same_parameters_and_another_does_not() -> None:
    first, again, other = (initialised(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.1.mlp.fc1.weight"], other["blocks.1.mlp.fc1.weight"])


def test_it_does_not_depend_on_the_order_of_creation_nor_on_global_randomness() -> None:
    model = VisionTransformer(WIDE, 32, 5)
    # The same parameters, registered in the opposite order.
    for module in model.modules():
        module._parameters = dict(reversed(module._parameters.items()))
        module._modules = dict(reversed(module._modules.items()))
    assert [n for n, _ in model.named_parameters()] != [n for n, _ in initialised().named_parameters()]
    before = torch.get_rng_state()
    init_parameters(model, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    expected = initialised().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_another_dtype_only_rounds_the_values() -> None:
    model = VisionTransformer(WIDE, 32, 5).double()
    init_parameters(model, torch.Generator().manual_seed(0))
    expected = initialised().state_dict()
    assert all(torch.equal(value, expected[name].double()) for name, value in model.state_dict().items())


def test_the_distributions_are_those_of_the_recipe() -> None:
    p = initialised().state_dict()
    uniform = {
        "blocks.0.attn.qkv.weight": math.sqrt(6 / (192 + 192)),
        "blocks.0.attn.proj.weight": math.sqrt(6 / (192 + 192)),
        "blocks.1.mlp.fc1.weight": math.sqrt(6 / (192 + 320)),
        "blocks.1.mlp.fc2.weight": math.sqrt(6 / (192 + 320)),
    }
    for name, bound in uniform.items():
        assert bound * 0.999 < p[name].abs().max() <= bound
        assert float(p[name].std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    patches = p["patch_embed.proj.weight"]
    deviation = math.sqrt(1 / (3 * 8 * 8))
    assert float(patches.std()) == pytest.approx(deviation, rel=0.02)
    assert patches.abs().max() <= 2 * deviation / 0.8796
    assert float(p["pos_embed"].std()) == pytest.approx(0.02, rel=0.1)
    assert float(p["blocks.0.mlp.fc1.bias"].std()) == pytest.approx(1e-6, rel=0.2)
    assert float(p["blocks.0.mlp.fc2.bias"].std()) == pytest.approx(1e-6, rel=0.2)
    zeros = ["cls_token", "patch_embed.proj.bias", "head.weight", "head.bias", "norm.bias", "blocks.0.norm1.bias"]
    zeros += ["blocks.1.attn.qkv.bias", "blocks.1.attn.proj.bias"]
    assert all(not p[name].any() for name in zeros)
    assert all((p[name] == 1).all() for name in ("norm.weight", "blocks.0.norm1.weight", "blocks.1.norm2.weight"))


def test_every_parameter_is_written() -> None:
    model = VisionTransformer(WIDE, 32, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    init_parameters(model, torch.Generator().manual_seed(0))
    parameters = dict(model.named_parameters())
    assert all(not parameters[name].isnan().any() for name in parameter_names(model))


def test_a_parameter_without_a_rule_is_refused() -> None:
    model = VisionTransformer(WIDE, 32, 5)
    model.register_parameter("beta", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(VitcoreError, match="no rule for the parameter 'beta'"):
        init_parameters(model, torch.Generator())
