"""Augmentation as data. Neither torch nor NumPy here: a step is printed by it too."""

from dataclasses import dataclass
from typing import Literal

from vitcore.errors import VitcoreError

# Strengths of RandAugment's transformations: 0 .. 30.
MOST_MAGNITUDE = 30

Policy = Literal["none", "randaugment", "three"]
POLICIES = ("none", "randaugment", "three")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What training does to a picture; the defaults do nothing. docs/augmentation.md says where and in which order.

    rotate: degrees, drawn from -rotate to rotate. scale: size of the content, drawn from lowest to highest.
    shear: degrees, horizontal, drawn from -shear to shear. translate: pixels, drawn from -translate to translate on
    each axis. gain: intensities times a factor drawn from 1 to 1 + gain, white at most. flip: mirrors left and right
    with probability 1/2. crop: the least and greatest share of the picture's area that is cut out and resized (ratio
    3/4 to 4/3). policy: `randaugment` chains `ops` transformations of strength `magnitude` (0 to 30), `three` takes one
    of grey, solarised and blurred. jitter: brightness, contrast and saturation each times a factor drawn from 1 - jitter
    to 1 + jitter. crop, policy and jitter are for pictures that are decoded.

    mixup, cutmix: alpha of the Beta distribution that each is drawn from, 0 for none; with both, a picture takes one of
    them, half and half. mix_probability: share of the pictures that are mixed. erase: probability that a rectangle is
    erased. patch_dropout: share of the patches left out. Raises VitcoreError for other numbers.
    """

    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    translate: float = 0.0
    gain: float = 0.0
    flip: bool = False
    crop: tuple[float, float] | None = None
    policy: Policy = "none"
    ops: int = 2
    magnitude: int = 9
    jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    erase: float = 0.0
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in ("rotate", "shear", "translate", "gain", "jitter"):
            if getattr(self, field) < 0.0:
                raise VitcoreError(f"augment: {field}={getattr(self, field)} is negative; give the size of its range")
        for field in ("mixup", "cutmix"):
            if getattr(self, field) < 0.0:
                raise VitcoreError(
                    f"augment: {field}={getattr(self, field)} is negative; give its alpha, or 0 for none"
                )
        for field in ("mix_probability", "erase"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise VitcoreError(f"augment: {field}={getattr(self, field)} is no probability; give one from 0 to 1")
        if self.shear >= 90.0:
            raise VitcoreError(f"augment: shear={self.shear} degrees flattens the picture; give less than 90")
        if not 0.0 < self.scale[0] <= self.scale[1]:
            raise VitcoreError(f"augment: scale={self.scale} is not a range; give (lowest, highest), above 0")
        if self.crop is not None and not 0.0 < self.crop[0] <= self.crop[1] <= 1.0:
            raise VitcoreError(f"augment: crop={self.crop} is not a range of shares; give (least, greatest) in (0, 1]")
        if self.policy not in POLICIES:
            raise VitcoreError(f"augment: policy={self.policy!r} is unknown; choose one of {', '.join(POLICIES)}")
        if self.ops < 1:
            raise VitcoreError(f"augment: ops={self.ops} is no chain; give 1 or more, or policy 'none'")
        if not 0 <= self.magnitude <= MOST_MAGNITUDE:
            raise VitcoreError(
                f"augment: magnitude={self.magnitude} is not on RandAugment's scale; give one from 0 to {MOST_MAGNITUDE}"
            )
        if not 0.0 <= self.patch_dropout < 1.0:
            raise VitcoreError(
                f"augment: patch_dropout={self.patch_dropout} leaves no patch; give the share left out, below 1"
            )

    @property
    def warps(self) -> bool:
        """Whether pictures are rotated, scaled, sheared or moved."""
        return self.rotate > 0.0 or self.shear > 0.0 or self.translate > 0.0 or self.scale != (1.0, 1.0)

    @property
    def of_reals(self) -> bool:
        """Whether pictures are changed as real numbers: warped, or made brighter."""
        return self.warps or self.gain > 0.0

    @property
    def of_bytes(self) -> bool:
        """Whether each picture is changed as uint8 after it was resized, by a policy or by jitter."""
        return self.policy != "none" or self.jitter > 0.0

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed with a partner, so that a micro-batch must hold whole pairs."""
        return self.mixup > 0.0 or self.cutmix > 0.0

    @property
    def on_device(self) -> tuple[str, ...]:
        """What the step's op data.augment does, in this order: some of flip, erase and mix."""
        chosen = {"flip": self.flip, "erase": self.erase > 0.0, "mix": self.mixes}
        return tuple(name for name, on in chosen.items() if on)

    def without_decoding(self, dataset: str) -> "Augment":
        """Return self; VitcoreError, naming `dataset`, where it crops or changes bytes: for data that is not decoded."""
        if self.crop is not None:
            raise VitcoreError(
                f"{dataset}: random crops are for folders of pictures; set crop to None (rotate, scale, shear, "
                "translate, gain and flip work here)"
            )
        if self.of_bytes:
            raise VitcoreError(
                f"{dataset}: policies and color jitter are for pictures that are decoded; set policy to 'none' and "
                "jitter to 0 (flip, mixup, cutmix and erase work here)"
            )
        return self
