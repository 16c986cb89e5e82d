"""The zoo as data: the sizes of each named Vision Transformer. This module imports no torch."""

from dataclasses import dataclass

from vitcore.errors import VitcoreError, nearest


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The numbers that make one Vision Transformer.

    `img_size` and `patch` are in pixels; `img_size` is the native one, and a model may be built at another.
    `dropout` acts after the position embedding, after the attention's output projection, after GELU and after the
    second dense layer; `attention_dropout` on the attention's probabilities. `gelu` is "tanh" (the approximation
    with which the original weights were trained) or "exact".
    """

    name: str
    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    img_size: int
    channels: int = 3
    dropout: float = 0.0
    attention_dropout: float = 0.0
    gelu: str = "tanh"
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse numbers that make no model (VitcoreError)."""
        for field in ("patch", "width", "depth", "heads", "mlp", "img_size", "channels"):
            size = getattr(self, field)
            if size < 1:
                raise VitcoreError(f"{self.name}: {field}={size} must be at least 1; give a positive one")
        if self.width % self.heads:
            raise VitcoreError(
                f"{self.name}: width {self.width} is not a multiple of {self.heads} heads; "
                "choose a number of heads that divides it"
            )
        for field in ("dropout", "attention_dropout"):
            rate = getattr(self, field)
            if not 0.0 <= rate < 1.0:
                raise VitcoreError(
                    f"{self.name}: {field}={rate} is not a rate; give a number of at least 0 and under 1"
                )
        if self.gelu not in ("tanh", "exact"):
            raise VitcoreError(f'{self.name}: gelu={self.gelu!r} is not known; give "tanh" or "exact"')
        if self.layer_norm_eps <= 0.0:
            raise VitcoreError(f"{self.name}: layer_norm_eps={self.layer_norm_eps} must be positive; 1e-6 is usual")


def _by_name(*variants: Variant) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


# B, L, H: the ViT paper (arXiv 2010.11929, table 1), with the dropout of its fine-tuning recipe.
# S, Ti: "How to train your ViT?" (AugReg, arXiv 2106.10270, table 1).
# digits: small enough to learn the embedded 8x8 handwritten digits on any machine in a minute.
VARIANTS: dict[str, Variant] = _by_name(
    Variant(name="ViT-B_16", patch=16, width=768, depth=12, heads=12, mlp=3072, img_size=224, dropout=0.1),
    Variant(name="ViT-B_32", patch=32, width=768, depth=12, heads=12, mlp=3072, img_size=224, dropout=0.1),
    Variant(name="ViT-L_16", patch=16, width=1024, depth=24, heads=16, mlp=4096, img_size=224, dropout=0.1),
    Variant(name="ViT-L_32", patch=32, width=1024, depth=24, heads=16, mlp=4096, img_size=224, dropout=0.1),
    Variant(name="ViT-H_14", patch=14, width=1280, depth=32, heads=16, mlp=5120, img_size=224, dropout=0.1),
    Variant(name="ViT-Ti_16", patch=16, width=192, depth=12, heads=3, mlp=768, img_size=224),
    Variant(name="ViT-S_16", patch=16, width=384, depth=12, heads=6, mlp=1536, img_size=224),
    Variant(name="ViT-digits", patch=2, width=48, depth=2, heads=4, mlp=96, img_size=8, channels=1),
)

# Names of the original recipe that people will type, and why they are refused. Not in VARIANTS, so nothing lists
# them as available.
NOT_YET: dict[str, str] = {"R50-ViT-B_16": "the hybrid stem is not implemented yet"}


def find_variant(name: str) -> Variant:
    """Return the variant called `name`; VitcoreError, with the nearest known name, when there is none."""
    if name in VARIANTS:
        return VARIANTS[name]
    known = ", ".join(VARIANTS)
    if name in NOT_YET:
        raise VitcoreError(f"{name}: {NOT_YET[name]}; choose one of {known}")
    raise VitcoreError(f"unknown variant {name!r}{nearest(name, list(VARIANTS))}; choose one of {known}")
