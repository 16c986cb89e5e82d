"""Exact parameter counts of the original models, printed as a table (`pytest -s`)."""

import pytest

from vitcore.model.shapes import count_parameters
from vitcore.model.variants import VARIANTS

# Everything but head and pre-logits at 224 and 384; with heads of 10, 100, 1000 classes at 224, of 1000 at 384, of 21843
# at 224 and 384; the imagenet21k file, with pre-logits and 21843 classes.
COLUMNS = ((224, 0), (384, 0), (224, 10), (224, 100), (224, 1000), (384, 1000), (224, 21843), (384, 21843))
COUNTS = {
    "ViT-B_16": (85_798_656, 86_090_496, 85_806_346, 85_875_556, 86_567_656, 86_859_496, 102_595_923, 102_887_763,
                 103_186_515),
    "ViT-B_32": (87_455_232, 87_528_192, 87_462_922, 87_532_132, 88_224_232, 88_297_192, 104_252_499, 104_325_459,
                 104_843_091),
    "ViT-L_16": (303_301_632, 303_690_752, 303_311_882, 303_404_132, 304_326_632, 304_715_752, 325_690_707, 326_079_827,
                 326_740_307),
    "ViT-L_32": (305_510_400, 305_607_680, 305_520_650, 305_612_900, 306_535_400, 306_632_680, 327_899_475, 327_996_755,
                 328_949_075),
    "ViT-H_14": (630_764_800, 631_370_240, 630_777_610, 630_892_900, 632_045_800, 632_651_240, 658_745_683, 659_351_123,
                 660_385_363),
    "R50-ViT-B_16": (97_890_112, 98_181_952, 97_897_802, 97_967_012, 98_659_112, 98_950_952, 114_687_379, 114_979_219,
                     115_277_971),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_original_integers(name: str) -> None:
    variant = VARIANTS[name]

    def count(size: int, classes: int, representation: int = 0) -> int:
        rows, columns = variant.grid(size, size)
        return count_parameters(variant.replace(representation=representation), rows * columns, classes)

    found = (*(count(size, classes) for size, classes in COLUMNS), count(224, 21843, variant.width))
    print(f"\n{name:<14}" + "".join(f"{n:>13,}" for n in found))
    assert found == COUNTS[name]
