"""Parameter groups from a run's settings: what is frozen, what is decayed, by which optimizer, at which share of the rate."""

from __future__ import annotations

from itertools import product

from vitcore.step.ir import Group

UNDECAYED = r"bias$|norm|cls_token|pos_embed|gamma$"
"""What is no matrix: with `decay_norms_and_biases` off, weight decay leaves it alone."""
MATRICES = r"^blocks\.\d+\.(attn|mlp)\.\w+\.weight$"
"""The matrices of the blocks, which are Muon's: qkv, proj, fc1 and fc2."""


def parameter_groups(
    optimizer: str, *, freeze: str | None, undecayed: str | None, layer_decay: float, depth: int
) -> tuple[Group, ...]:
    """The groups; a parameter is in the first one whose pattern its name matches.

    freeze: pattern of what is not trained, or None. undecayed: pattern of what is trained without weight decay, or None.
    layer_decay: share of the rate from each layer to the one before it; at 1 there are no layers, and `depth` is not read.
    The layers are those of BEiT (Bao et al. 2021, arXiv 2106.08254) as timm counts them: the embeddings, each of the `depth`
    blocks (the last one with the norm after it), and the head, which has the full rate.
    """
    layers = _layers(depth, layer_decay) if layer_decay != 1 else [("", "", 1.0)]
    decays = [("undecayed", undecayed, 0.0), ("decayed", "", 1.0)] if undecayed else [("", "", 1.0)]
    kinds = [("matrices", MATRICES, "muon"), ("", "", "adamw")] if optimizer == "muon" else [("", "", "")]
    groups = [Group("frozen", freeze, frozen=True)] if freeze is not None else []
    for (layer, in_layer, lr), (decay, in_decay, times), (matrices, in_kind, kind) in product(layers, decays, kinds):
        if kind == "muon" and (layer in ("embeddings", "head") or in_decay == UNDECAYED):
            continue  # none of them is a matrix of a block
        name = "-".join(filter(None, (layer, decay, matrices))) or "all"
        groups.append(Group(name, _every(in_layer, in_decay, in_kind), lr, times, kind))
    return tuple(groups)


def _layers(depth: int, decay: float) -> list[tuple[str, str, float]]:
    """Name, pattern and share of the rate of each layer, lowest first; the head's pattern is everything that is left."""
    blocks = [(f"block{i}", rf"^blocks\.{i}\.", decay ** (depth - i)) for i in range(depth)]
    name, pattern, share = blocks[-1]
    blocks[-1] = name, rf"{pattern}|^norm\.", share
    return [("embeddings", "^(cls_token|pos_embed|patch_embed)", decay ** (depth + 1)), *blocks, ("head", "", 1.0)]


def _every(*patterns: str) -> str:
    """A pattern that matches where each of these does; an empty one always does."""
    asked = [p for p in patterns if p]
    if len(asked) > 1:
        return "^" + "".join(f"(?=.*(?:{p}))" for p in asked)
    return asked[0] if asked else ".*"
