"""Loaded models against an independent float64 forward over random parameters in the official layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import BY_NAME, CASES, Case, logits, save
from oracle import forward

import vitcore

BOUND = 5e-5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_are_those_of_the_original_arithmetic(case: Case, tmp_path: Path) -> None:
    parameters, images = case.parameters(), case.images()
    model = vitcore.load(save(tmp_path / "model.npz", parameters), img_size=case.size)
    expected = forward(parameters, images)
    assert np.abs(expected).max() > 1  # of a size at which the bound means something
    assert np.abs(logits(model, images) - expected).max() <= BOUND
    assert not model.training and next(model.parameters()).is_contiguous()


def test_a_side_means_a_square_and_none_the_files_own_size(tmp_path: Path) -> None:
    case = BY_NAME["ViT-B_16"]
    path = save(tmp_path / "model.npz", case.parameters())
    assert vitcore.load(path).img_size == (64, 64) and vitcore.load(path, 96).img_size == (96, 96)


@pytest.mark.parametrize("classes", [1, 7, 10])
def test_a_number_of_classes_makes_a_zero_head_and_drops_pre_logits(classes: int, tmp_path: Path) -> None:
    case = BY_NAME["R26-ViT-B_32 oblong"]
    model = vitcore.load(save(tmp_path / "model.npz", case.parameters()), case.size, classes)
    assert model.pre_logits is None and model.head is not None and model.head.weight.shape == (classes, case.width)
    assert not logits(model, case.images()).any()


def test_without_a_head_the_features_come_out_that_it_would_read(tmp_path: Path) -> None:
    case = BY_NAME["ViT-B_32"]
    parameters, images = case.parameters(), case.images()
    path = save(tmp_path / "model.npz", parameters)
    features = logits(vitcore.load(path, case.size, 0), images)
    head = features @ parameters["head/kernel"] + parameters["head/bias"]
    assert np.abs(head - forward(parameters, images)).max() <= BOUND


def test_a_file_without_a_head_has_none(tmp_path: Path) -> None:
    case = BY_NAME["ViT-B_32"]
    body = {n: a for n, a in case.parameters().items() if not n.startswith("head/")}
    assert vitcore.load(save(tmp_path / "model.npz", body)).num_classes == 0


def test_layers_stacked_by_a_scan_are_the_same_model(tmp_path: Path) -> None:
    case = BY_NAME["ViT-S_16 under params"]
    parameters, images = case.parameters(), case.images()
    stacked = {n: a for n, a in parameters.items() if "encoderblock" not in n}
    for name in parameters:
        if "encoderblock_0/" in name:
            layers = [parameters[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(case.depth)]
            stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    model = vitcore.load(save(tmp_path / "model.npz", stacked), img_size=case.size)
    assert np.abs(logits(model, images) - forward(parameters, images)).max() <= BOUND


def test_a_class_token_without_a_position_of_its_own(tmp_path: Path) -> None:
    case = BY_NAME["ViT-B_32"]
    parameters, images = case.parameters(), case.images()
    name = "Transformer/posembed_input/pos_embedding"
    parameters[name][:, 0] = 0
    renamed = {("pos_embedding" if n == name else n): (a[:, 1:] if n == name else a) for n, a in parameters.items()}
    model = vitcore.load(save(tmp_path / "model.npz", renamed), img_size=case.size)
    assert np.abs(logits(model, images) - forward(parameters, images)).max() <= BOUND


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "bfloat16"])
def test_other_floats_are_converted_once(dtype: str, tmp_path: Path) -> None:
    case = BY_NAME["ViT-Ti_16 one patch"]
    parameters = case.parameters()
    if dtype == "bfloat16":  # as big_vision stores it: two bytes without a type
        held = {n: torch.from_numpy(a).bfloat16().view(torch.int16).numpy().view("V2") for n, a in parameters.items()}
        rounded = {n: torch.from_numpy(a).bfloat16().float().numpy() for n, a in parameters.items()}
    else:
        held = {n: a.astype(dtype) for n, a in parameters.items()}
        rounded = {n: a.astype(np.float32) for n, a in held.items()}
    model = vitcore.load(save(tmp_path / "model.npz", held))
    exact = vitcore.load(save(tmp_path / "exact.npz", rounded))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), exact.state_dict().values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [Case("ViT-B_16", 16, 768, 12, 3072, (14, 14), (384, 384), depth=12, representation=768, classes=1000),
     Case("R50-ViT-B_16", 1, 768, 12, 3072, (14, 14), (224, 224), depth=12, stages=(3, 4, 9), stem_width=64,
          representation=768, classes=1000)],
    ids=lambda case: case.name,
)  # fmt: skip
def test_full_size(case: Case, tmp_path: Path) -> None:
    parameters, images = case.parameters(), case.images(batch=1)
    model = vitcore.load(save(tmp_path / "model.npz", parameters), img_size=case.size, model_type=case.name)
    assert np.abs(logits(model, images) - forward(parameters, images)).max() <= BOUND
