"""Each mistake that loaders of these files have made is planted in the oracle: the parity test would notice it."""

from pathlib import Path

import numpy as np
import pytest
from cases import BY_NAME, Case, logits, save
from oracle import forward
from test_parity import BOUND

import vitcore

TOKEN, MEAN, HYBRID = "ViT-B_16 today, larger", "ViT-B_16 mean, oblong", "R50-ViT-B_16 today, odd and larger"
MISTAKES = [
    (TOKEN, "exact GELU"),
    (TOKEN, "layer norm epsilon 1e-5"),
    (TOKEN, "layer norm epsilon 1e-12"),
    (TOKEN, "positions by half pixels"),
    (TOKEN, "positions by bicubic"),
    ("ViT-B_16", "no pre-logits"),
    (TOKEN, "pre-logits without tanh"),
    (TOKEN, "pixels from 0 to 1"),
    (TOKEN, "ImageNet's mean and deviation"),
    (TOKEN, "height and width of the kernel swapped"),
    (TOKEN, "heads interleaved"),
    (TOKEN, "no bias of query, key and value"),
    (TOKEN, "the class token without its position"),
    ("ViT-B_16 of twelve blocks", "blocks sorted as text"),
    (MEAN, "the mean before the last norm"),
    (HYBRID, "group norm epsilon 1e-5"),
    (HYBRID, "kernels over the root of variance + 1e-5"),
    (HYBRID, "kernels over the root of variance + 1e-8"),
    ("R26-ViT-S_32 today", "the unbiased variance of kernels"),
    (HYBRID, "a group for each channel of the projection's norm"),
    ("R50-ViT-B_16", "symmetric padding"),
    ("R50-ViT-B_16", "the stride in the first convolution"),
]


def picture(case: Case, mistake: str) -> np.ndarray:
    images = case.images()
    if case.stages is None or not ("epsilon" in mistake or "unbiased" in mistake):
        return images
    # Norms undo a factor of a kernel, and on a lively picture no variance is near an epsilon; a nearly uniform one shows.
    return images * np.float32(0.003 if "epsilon" in mistake else 0.01) + np.float32(0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=lambda value: value.replace(" ", "-"))
def test_it_is_noticed(name: str, mistake: str, folder: Path) -> None:
    case = BY_NAME[name]
    parameters = case.parameters()
    if "kernel" in mistake and case.stages:
        parameters = scaled(
            parameters, "conv", 0.005 if "unbiased" in mistake else 0.02
        )  # of a deviation as trained ones have: an epsilon counts beside it
    if "layer norm" in mistake:
        parameters = scaled(parameters, "embedding", 0.05)  # tokens of small variance, as in the first blocks of a file
    images = picture(case, mistake)
    found = logits(vitcore.load(save(folder / "model.npz", parameters), img_size=case.size), images)
    right, wrong = forward(parameters, images), forward(parameters, images, mistake)
    noise, change = np.abs(found - right).max(), np.abs(found - wrong).max()
    assert noise <= BOUND or "epsilon" in mistake or "unbiased" in mistake
    assert change > 2 * BOUND and change > 4 * noise, (noise, change)


def scaled(parameters: dict[str, np.ndarray], part: str, by: float) -> dict[str, np.ndarray]:
    """The parameters with those whose names hold `part` made smaller."""
    return {n: a * np.float32(by) if part in n else a for n, a in parameters.items()}


def test_a_pool_without_padding_gives_another_number_of_patches() -> None:
    case = BY_NAME["R50-ViT-B_16"]
    parameters = case.parameters()
    right = forward(parameters, case.images())
    assert np.abs(forward(parameters, case.images(), "the pool without padding") - right).max() > BOUND


def test_the_loader_keeps_no_zero_head_where_a_new_one_is_asked_for_and_its_own_where_none_is(folder: Path) -> None:
    case = BY_NAME["ViT-B_16"]
    zero = {n: a * 0 if n.startswith("head/") else a for n, a in case.parameters().items()}
    path = save(folder / "zero.npz", zero)
    assert vitcore.load(path, num_classes=3).num_classes == 3
    assert vitcore.load(path).num_classes == case.classes and not logits(vitcore.load(path), case.images()).any()
