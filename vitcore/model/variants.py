"""The zoo as data: the sizes of each named Vision Transformer. This module imports no torch."""

from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any

from vitcore.errors import VitcoreError, nearest


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The numbers that make one Vision Transformer.

    `img_size` is in pixels, the native one; a model may be built at another. `patch` is in pixels too, or, behind a
    ResNet, in cells of its last map: `stages` are its stages' numbers of units, `()` for the root alone, None for no
    ResNet. `pool` says what the head reads: the class "token", or the mean over all patches ("gap"; there is no class
    token then). `representation` is the width of a dense layer and tanh before the head, 0 for none. `layer_scale` is
    the initial factor of each residual branch's channels, None for no factors.
    `dropout` acts after the position embedding, after the attention's output projection, after GELU and after the
    second dense layer; `attention_dropout` on the attention's probabilities. `drop_path` is the rate at which the last
    block's residual branches are dropped for a whole sample ("stochastic depth", arXiv 1603.09382), linear from 0 at the
    first block's.

    What the same weights are computed with: `gelu` is "tanh" (the approximation with which the original weights were
    trained) or "exact". The kernels of a ResNet are divided by sqrt(variance + `var_eps`) + `std_eps`. `mean` and
    `std` are those of the pixels, on a scale from 0 to 1, that the weights were trained with.
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
    drop_path: float = 0.0
    stages: tuple[int, ...] | None = None
    stem_width: int = 64
    pool: str = "token"
    representation: int = 0
    layer_scale: float | None = None
    gelu: str = "tanh"
    layer_norm_eps: float = 1e-6
    group_norm_eps: float = 1e-6
    std_eps: float = 1e-5
    var_eps: float = 0.0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

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
        for field in ("dropout", "attention_dropout", "drop_path"):
            rate = getattr(self, field)
            if not 0.0 <= rate < 1.0:
                raise VitcoreError(
                    f"{self.name}: {field}={rate} is not a rate; give a number of at least 0 and under 1"
                )
        for field, known in (("gelu", ("tanh", "exact")), ("pool", ("token", "gap"))):
            if getattr(self, field) not in known:
                choices = " or ".join(f'"{k}"' for k in known)
                raise VitcoreError(f"{self.name}: {field}={getattr(self, field)!r} is not known; give {choices}")
        for field in ("layer_norm_eps", "group_norm_eps"):
            if not getattr(self, field) > 0.0:
                raise VitcoreError(f"{self.name}: {field}={getattr(self, field)} must be positive; 1e-6 is usual")
        if not (self.std_eps >= 0.0 and self.var_eps >= 0.0 and self.std_eps + self.var_eps > 0.0):
            raise VitcoreError(f"{self.name}: std_eps={self.std_eps} and var_eps={self.var_eps} must not be negative, "
                               "nor both 0; 1e-5 and 0 are the original's")  # fmt: skip
        if self.representation < 0 or any(units < 1 for units in self.stages or ()):
            raise VitcoreError(f"{self.name}: representation={self.representation} and stages={self.stages} must not "
                               "be negative, nor a stage empty; give positive ones")  # fmt: skip
        if self.stages is not None and self.stem_width % 32:
            raise VitcoreError(f"{self.name}: stem_width={self.stem_width} is not a multiple of 32, the number of "
                               "groups of its norms; 64 is usual")  # fmt: skip
        if min(self.std) <= 0.0:
            raise VitcoreError(f"{self.name}: std={self.std} must be positive; (0.5, 0.5, 0.5) is usual")
        if self.rescales and {len(self.mean), len(self.std)} != {self.channels}:
            raise VitcoreError(f"{self.name}: mean={self.mean} and std={self.std} are not one for each of "
                               f"{self.channels} channels; give as many")  # fmt: skip

    def replace(self, **changes: Any) -> "Variant":
        """The variant with fields replaced; VitcoreError, with the nearest field, for one that there is not."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise VitcoreError(
                    f"{self.name}: a variant has no field {name!r}{nearest(name, known)}; choose from {', '.join(known)}"
                )
        return replace(self, **changes)

    @property
    def arithmetic(self) -> str:
        """What the weights are computed with, for people."""
        said = f"{self.gelu} GELU, layer norm epsilon {self.layer_norm_eps:g}"
        if self.stages is not None:
            said += f", group norm epsilon {self.group_norm_eps:g}, kernels over "
            said += f"sqrt(variance + {self.var_eps:g}) + {self.std_eps:g}"
        return said + (f", pixels of mean {self.mean} and deviation {self.std}" if self.rescales else "")

    @property
    def rescales(self) -> bool:
        """Whether pictures in [-1, 1] are not yet as the weights expect them."""
        return {*self.mean, *self.std} != {0.5}

    @property
    def stride(self) -> int:
        """Pixels from one patch to the next."""
        if self.stages is None:
            return self.patch
        return self.patch * 4 * 2 ** max(len(self.stages) - 1, 0)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a picture in pixels; an incomplete last patch is left out."""
        for _ in range(0 if self.stages is None else 2 + max(len(self.stages) - 1, 0)):
            height, width = ceil(height / 2), ceil(width / 2)  # the ResNet pads, so no pixel is left out
        return height // self.patch, width // self.patch


def _by_name(*variants: Variant) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


# B, L, H: the ViT paper (arXiv 2010.11929, table 1), with the dropout of its fine-tuning recipe; R50: its hybrids.
# S, Ti and the small hybrids: "How to train your ViT?" (AugReg, arXiv 2106.10270, table 1).
# DINOv2: arXiv 2304.07193, without registers; trained on pixels normalised by ImageNet's statistics.
# digits: small enough to learn the embedded 8x8 handwritten digits on any machine in a minute.
_TI: Any = {"width": 192, "depth": 12, "heads": 3, "mlp": 768}
_S: Any = {"width": 384, "depth": 12, "heads": 6, "mlp": 1536}
_B: Any = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072}
_L: Any = {"width": 1024, "depth": 24, "heads": 16, "mlp": 4096}
_H: Any = {"width": 1280, "depth": 32, "heads": 16, "mlp": 5120}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

VARIANTS: dict[str, Variant] = _by_name(
    Variant(name="ViT-B_16", patch=16, **_B, img_size=224, dropout=0.1),
    Variant(name="ViT-B_32", patch=32, **_B, img_size=224, dropout=0.1),
    Variant(name="ViT-L_16", patch=16, **_L, img_size=224, dropout=0.1),
    Variant(name="ViT-L_32", patch=32, **_L, img_size=224, dropout=0.1),
    Variant(name="ViT-H_14", patch=14, **_H, img_size=224, dropout=0.1),
    Variant(name="R50-ViT-B_16", patch=1, **_B, img_size=224, dropout=0.1, stages=(3, 4, 9)),
    Variant(name="R50-ViT-L_32", patch=1, **_L, img_size=224, dropout=0.1, stages=(3, 4, 6, 3)),
    Variant(name="R26-ViT-B_32", patch=1, **_B, img_size=224, dropout=0.1, stages=(2, 2, 2, 2)),
    Variant(name="ViT-B_8", patch=8, **_B, img_size=224),
    Variant(name="ViT-Ti_16", patch=16, **_TI, img_size=224),
    Variant(name="ViT-S_16", patch=16, **_S, img_size=224),
    Variant(name="ViT-S_32", patch=32, **_S, img_size=224),
    Variant(name="R-ViT-Ti_16", patch=8, **_TI, img_size=224, stages=()),
    Variant(name="R26-ViT-S_32", patch=1, **_S, img_size=224, stages=(2, 2, 2, 2)),
    Variant(name="DINOv2-S_14", patch=14, **_S, img_size=518, layer_scale=1e-5, gelu="exact",
            mean=IMAGENET_MEAN, std=IMAGENET_STD),
    Variant(name="ViT-digits", patch=2, width=48, depth=2, heads=4, mlp=96, img_size=8, channels=1,
            mean=(0.5,), std=(0.5,)),
)  # fmt: skip


def find_variant(name: str) -> Variant:
    """Return the variant called `name`; VitcoreError, with the nearest known name, when there is none.

    The plus of the published hybrids' names may be written: R50+ViT-B_16 is R50-ViT-B_16.
    """
    found = VARIANTS.get(name.replace("+", "-"))
    if found is None:
        known = ", ".join(VARIANTS)
        raise VitcoreError(f"unknown variant {name!r}{nearest(name, list(VARIANTS))}; choose one of {known}")
    return found
