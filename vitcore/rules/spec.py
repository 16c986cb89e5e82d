"""What a recipe's programs depend on, as data."""

from __future__ import annotations

from dataclasses import dataclass

from vitcore.errors import VitcoreError, nearest
from vitcore.step.ir import Group

# Each optimizer's scalars that may change from step to step; they travel in `%hyper` (rule V8).
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "sgdm": ("lr", "weight_decay", "momentum"),
    "adamw": ("lr", "weight_decay", "beta1", "beta2", "eps"),
    "lamb": ("lr", "weight_decay", "beta1", "beta2", "eps"),
    "lion": ("lr", "weight_decay", "beta1", "beta2"),
    "muon": ("lr", "weight_decay", "momentum", "beta1", "beta2", "eps"),
}


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """What the programs depend on; everything else of a recipe is data that flows through them."""

    name: str
    optimizer: str
    accumulation: int = 1
    clip: bool = True
    label_smoothing: float = 0.0
    loss: str = "softmax"
    patch_dropout: float = 0.0
    augment: tuple[str, ...] = ()
    """What is done to a batch on the device, of `flip`, `erase` and `mix`."""
    ema: bool = False
    sam: bool = False
    details: bool = False
    """Whether an evaluation counts by class and by confidence too."""
    groups: tuple[Group, ...] = (Group("all"),)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            close = nearest(self.optimizer, [*OPTIMIZERS])
            raise VitcoreError(f"optimizer {self.optimizer!r} is unknown{close}; choose one of {known}")
        if self.accumulation < 1:
            raise VitcoreError(f"accumulation of {self.accumulation} micro-batches makes no step; make it at least 1")

    @property
    def hypers(self) -> tuple[str, ...]:
        """The names that `%hyper` must hold for this step."""
        more = {"max_norm": self.clip, "ema_keep": self.ema, "rho": self.sam}
        return (*OPTIMIZERS[self.optimizer], *(name for name, asked in more.items() if asked))
