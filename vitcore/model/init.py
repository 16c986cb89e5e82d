"""The initial parameters of the original recipe, drawn on the host from one generator."""

import math

import torch
from torch import Tensor

from vitcore.errors import VitcoreError
from vitcore.model.variants import Variant
from vitcore.model.vit import VisionTransformer, parameter_names

POSITION_STD = 0.02
MLP_BIAS_STD = 1e-6
# Standard deviation of a unit normal cut at +-2: dividing by it gives the cut one unit variance again.
TRUNCATED_STD = 0.87962566103423978


@torch.no_grad()
def init_parameters(model: VisionTransformer, generator: torch.Generator) -> None:
    """Fill every parameter of `model` in place from `generator` alone.

    Draws are made in float32 on the generator's device, in the order of `parameter_names`, and then copied: the values
    do not depend on the order of creation, nor on the model's device, and its dtype only rounds them.
    Raises VitcoreError for a parameter for which the recipe has no rule.
    """
    parameters = dict(model.named_parameters())
    for name in parameter_names(model):
        parameter = parameters[name]
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
        _fill(name, drawn, model.variant, generator)
        parameter.copy_(drawn)


def _fill(name: str, drawn: Tensor, variant: Variant, generator: torch.Generator) -> None:
    """Fill `drawn` by the rule for the parameter `name` (google-research/vision_transformer, models.py)."""
    module, _, kind = name.rpartition(".")
    place = module.rpartition(".")[2]
    if name == "pos_embed":
        drawn.normal_(0.0, POSITION_STD, generator=generator)
    elif kind == "weight" and (module in ("patch_embed.proj", "pre_logits.fc") or place.startswith("conv")):
        _lecun_normal(drawn, generator)
    elif place == "norm3" and kind == "weight":
        drawn.zero_()  # a fresh unit of the ResNet is its shortcut
    elif kind == "gamma" and variant.layer_scale is not None:
        drawn.fill_(variant.layer_scale)
    elif place == "qkv" and kind == "weight":
        # q, k and v are three width x width matrices there: one bound for each, not for the three stacked.
        _xavier_uniform(drawn, variant.width, variant.width, generator)
    elif place in ("proj", "fc1", "fc2") and kind == "weight":
        _xavier_uniform(drawn, drawn.shape[1], drawn.shape[0], generator)
    elif place in ("fc1", "fc2") and kind == "bias":
        drawn.normal_(0.0, MLP_BIAS_STD, generator=generator)
    elif place in ("norm", "norm1", "norm2") and kind == "weight":
        drawn.fill_(1.0)
    elif name == "cls_token" or module == "head" or kind == "bias":
        # A zero head: the first loss is log(classes), and nothing of the body moves until the head has.
        drawn.zero_()
    else:
        raise VitcoreError(f"init_parameters: no rule for the parameter {name!r}; add one to vitcore/model/init.py")


def _xavier_uniform(drawn: Tensor, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    drawn.uniform_(-bound, bound, generator=generator)


def _lecun_normal(drawn: Tensor, generator: torch.Generator) -> None:
    """Variance 1 / fan-in, cut at two standard deviations of the normal that is cut."""
    std = math.sqrt(1.0 / math.prod(drawn.shape[1:])) / TRUNCATED_STD
    torch.nn.init.trunc_normal_(drawn, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
