"""The same weights in timm and transformers: loaded from their files, exported to them, and back, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import vitcore
from vitcore.errors import VitcoreError
from vitcore.model.init import init_parameters
from vitcore.model.vit import VisionTransformer, build_model
from vitcore.weights.write import write

BOUND = 2e-5
SMALL: dict[str, Any] = {"width": 64, "depth": 2, "heads": 4, "mlp": 160}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter at a value at which a mistake would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            around = 1.0 if name.endswith("weight") and p.ndim == 1 else 0.0
            fan = p[0].numel() if p.ndim > 1 else 10
            last = 0.2 if ".norm3." in name else 1.0
            p.copy_(around * last + torch.randn(p.shape, generator=generator) / fan**0.5)
    return model.eval()


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(7)) * 2 - 1


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    return path


def same_forward_and_gradients(ours: VisionTransformer, theirs: nn.Module, x: Tensor, folder: Path) -> None:
    """Logits, and every gradient of a scalar of them, to the bound; gradients relative to the largest of their tensor.

    Their gradients travel through the loader too, as if they were weights: so each is compared with its own.
    """

    def logits(model: nn.Module) -> Tensor:
        out = model(x)
        return out if isinstance(out, Tensor) else out.logits

    assert (logits(ours) - logits(theirs)).abs().max() <= BOUND
    for model in (ours, theirs):
        model.zero_grad()
        logits(model).sin().sum().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    read = vitcore.load(save(grads, folder / "grads.safetensors"), heads=ours.variant.heads)
    expected = dict(read.named_parameters())
    for name, p in ours.named_parameters():
        assert p.grad is not None
        got, wanted = p.grad, expected[name].detach()
        if name == "pos_embed" and not wanted[:, 0].any():  # theirs has no slot for the class token
            got, wanted = got[:, 1:], wanted[:, 1:]
        scale = max(1.0, float(wanted.abs().max()))
        assert (got - wanted).abs().max() <= BOUND * scale, name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1},
        {"no_embed_class": True},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ],
)
def test_a_state_dict_of_timm_computes_what_timm_computes(options: dict, suffix: str, tmp_path: Path) -> None:
    theirs = randomise(timm.models.VisionTransformer(
        img_size=48, patch_size=16, embed_dim=64, depth=2, num_heads=4, mlp_ratio=2.5, num_classes=5, **options))  # fmt: skip
    ours = vitcore.load(save(theirs.state_dict(), tmp_path / f"model{suffix}"), heads=4)
    assert ours.variant.gelu == "exact" and ours.img_size == (48, 48)
    same_forward_and_gradients(ours, theirs, pictures(48, 48), tmp_path)


def test_timms_tanh_gelu_is_ours(tmp_path: Path) -> None:
    theirs = randomise(timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=1, num_classes=5, act_layer="gelu_tanh"))  # fmt: skip
    ours = vitcore.load(save(theirs.state_dict(), tmp_path / "model.pth"), gelu="tanh")
    same_forward_and_gradients(ours, theirs, pictures(32, 32), tmp_path)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_a_hybrid_of_timm_computes_what_timm_computes(name: str, tmp_path: Path) -> None:
    theirs = randomise(timm.create_model(name, img_size=64, num_classes=5, depth=2))
    ours = vitcore.load(save(theirs.state_dict(), tmp_path / "model.safetensors"))
    assert (ours.variant.var_eps, ours.variant.std_eps, ours.variant.group_norm_eps) == (1e-8, 0.0, 1e-5)
    same_forward_and_gradients(ours, theirs, pictures(64, 64), tmp_path)
    original = vitcore.load(tmp_path / "model.safetensors", var_eps=0.0, std_eps=1e-5, group_norm_eps=1e-6, gelu="tanh")
    assert (original(pictures(64, 64)) - theirs(pictures(64, 64))).abs().max() > BOUND


@pytest.mark.parametrize("living", [True, False], ids=["state_dict", "save_pretrained"])
def test_a_classifier_of_transformers_computes_what_transformers_computes(living: bool, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160, image_size=48, patch_size=16,
        num_labels=5,
    )  # fmt: skip
    theirs = randomise(transformers.ViTForImageClassification(config))
    if living:
        ours = vitcore.load(save(theirs.state_dict(), tmp_path / "model.pth"), heads=4)
    else:
        theirs.save_pretrained(tmp_path / "saved")
        ours = vitcore.load(tmp_path / "saved")
    assert (ours.variant.gelu, ours.variant.layer_norm_eps, ours.variant.heads) == ("exact", 1e-12, 4)
    same_forward_and_gradients(ours, theirs, pictures(48, 48), tmp_path)


def test_a_bare_model_of_transformers_gives_what_its_pooler_gives(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160, image_size=48, patch_size=16,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = randomise(transformers.ViTModel(config))
    theirs.save_pretrained(tmp_path)
    ours = vitcore.load(tmp_path)
    assert ours.variant.representation == 64 and ours.variant.gelu == "tanh" and ours.num_classes == 0
    assert (ours(pictures(48, 48)) - theirs(pictures(48, 48)).pooler_output).abs().max() <= BOUND


def test_dinov2_of_transformers_gives_its_class_tokens_features(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=42, patch_size=14)  # fmt: skip
    theirs = randomise(transformers.Dinov2Model(config))
    theirs.save_pretrained(tmp_path)
    ours = vitcore.load(tmp_path)
    assert ours.variant.layer_scale is not None
    # Its pixels are normalised by ImageNet's statistics, which ours does from [-1, 1] itself.
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = pictures(42, 42)
    assert (ours(x) - theirs((x * 0.5 + 0.5 - mean) / std).pooler_output).abs().max() <= BOUND


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 61.0, 62.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    ],
)
def test_pixels_are_as_the_processor_of_transformers_makes_them(said: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=160, image_size=32,
        num_labels=5,
    )  # fmt: skip
    theirs = randomise(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(do_resize=False, **said)
    processor.save_pretrained(tmp_path)
    bytes_BCYX = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    pixels = processor(list(bytes_BCYX), return_tensors="pt")["pixel_values"]
    ours = vitcore.load(tmp_path)
    assert (ours(bytes_BCYX.float() / 127.5 - 1) - theirs(pixels).logits).abs().max() <= BOUND


def test_positions_resample_as_timms_where_asked(tmp_path: Path) -> None:
    theirs = randomise(timm.models.VisionTransformer(
        img_size=48, patch_size=16, embed_dim=64, depth=1, num_heads=1, num_classes=5))  # fmt: skip
    path = save(theirs.state_dict(), tmp_path / "model.pth")
    ours = vitcore.load(path, img_size=(80, 64), positions="bicubic")
    theirs.set_input_size(img_size=(80, 64))
    assert (ours(pictures(80, 64)) - theirs(pictures(80, 64))).abs().max() <= BOUND
    assert (vitcore.load(path, img_size=(80, 64))(pictures(80, 64)) - theirs(pictures(80, 64))).abs().max() > 1e-3


# ---- exported, read by the other side, and back ----


def made(name: str = "ViT-Ti_16", size: Any = 48, classes: int = 5, **overrides: Any) -> VisionTransformer:
    model = build_model(name, size, classes, **{**SMALL, **overrides})
    init_parameters(model, torch.Generator().manual_seed(0))
    return randomise(model)


def assert_same(a: VisionTransformer, b: VisionTransformer) -> None:
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    assert left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("name", ["ViT-Ti_16", "ViT-B_32", "DINOv2-S_14"])
@pytest.mark.parametrize("size", [96, (64, 128)], ids=["square", "oblong"])
def test_what_timm_loads_computes_the_same_and_comes_back_bit_for_bit(name: str, size: Any, tmp_path: Path) -> None:
    model = made(name, size, heads=2)
    folder = write(model, "timm", tmp_path / "exported")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = pictures(*model.img_size)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.variant.mean, model.variant.std))
    assert (theirs((x * 0.5 + 0.5 - mean) / std) - model(x)).abs().max() <= BOUND
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["mean"]) == model.variant.mean and data["crop_pct"] == 1.0 and data["interpolation"] == "bilinear"
    back = vitcore.load(folder)
    assert back.img_size == model.img_size
    assert_same(model, back)
    assert (
        back.variant.gelu == model.variant.gelu and back.variant.heads == 2 and back.variant.mean == model.variant.mean
    )


def test_a_mean_and_a_hybrid_go_to_timm_where_timm_computes_the_same(tmp_path: Path) -> None:
    mean = made(pool="gap")
    theirs = timm.create_model(f"local-dir:{write(mean, 'timm', tmp_path / 'mean')}", pretrained=True).eval()
    assert (theirs(pictures(48, 48)) - mean(pictures(48, 48))).abs().max() <= BOUND
    hybrid = build_model("R26-ViT-S_32", 64, 5, depth=12, std_eps=0.0, var_eps=1e-8, group_norm_eps=1e-5)
    randomise(hybrid)
    folder = write(hybrid, "timm", tmp_path / "hybrid")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert (theirs(pictures(64, 64)) - hybrid(pictures(64, 64))).abs().max() <= BOUND
    assert_same(hybrid, vitcore.load(folder))


@pytest.mark.parametrize("classes", [5, 0])
@pytest.mark.parametrize("size", [48, (32, 64)], ids=["square", "oblong"])
def test_what_transformers_loads_computes_the_same_and_comes_back_bit_for_bit(
    classes: int, size: Any, tmp_path: Path
) -> None:
    model = made(size=size, classes=classes, representation=0 if classes else 64)
    model.class_names = tuple("abcde") if classes else None
    folder = write(model, "huggingface", tmp_path / "exported")
    x = pictures(*model.img_size)
    if classes:
        theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        assert (theirs(x).logits - model(x)).abs().max() <= BOUND
        assert theirs.config.id2label == dict(enumerate("abcde"))
    else:
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        assert (theirs(x).pooler_output - model(x)).abs().max() <= BOUND
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert (processor.size["height"], processor.size["width"]) == model.img_size and list(processor.image_mean) == [
        0.5
    ] * 3
    back = vitcore.load(folder)
    assert back.img_size == model.img_size
    assert_same(model, back)
    assert back.variant.gelu == "tanh" and back.variant.layer_norm_eps == 1e-6 and back.class_names == model.class_names


def test_dinov2_goes_to_transformers_without_a_head(tmp_path: Path) -> None:
    model = made("DINOv2-S_14", 42, 0, mlp=128)
    folder = write(model, "huggingface", tmp_path / "exported")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    x = pictures(42, 42)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.variant.mean, model.variant.std))
    assert (theirs((x * 0.5 + 0.5 - mean) / std).pooler_output - model(x)).abs().max() <= BOUND
    back = vitcore.load(folder)
    assert_same(model, back)
    assert (back(x) - model(x)).abs().max() == 0


@pytest.mark.parametrize("to", ["npz", "vitcore"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("ViT-Ti_16", {"representation": 40}), ("ViT-S_16", {"pool": "gap"}), ("R50-ViT-B_16", {}), ("R-ViT-Ti_16", {})],
)
def test_our_own_formats_come_back_bit_for_bit(name: str, options: dict, to: str, tmp_path: Path) -> None:
    model = made(name, 64, **options)
    back = vitcore.load(write(model, to, tmp_path / "model"))
    assert_same(model, back)
    assert (back(pictures(64, 64)) - model(pictures(64, 64))).abs().max() == 0
    if to == "vitcore":
        assert back.variant == model.variant


def test_an_npz_comes_back_as_it_was(tmp_path: Path) -> None:
    import numpy as np
    from cases import CASES
    from cases import save as save_npz

    for case in (c for c in CASES if not (c.today or c.prefix or c.flat_norms) and c.native == (4, 4)):
        before = case.parameters()
        model = vitcore.load(save_npz(tmp_path / "before.npz", before))
        after = np.load(write(model, "npz", tmp_path / f"{case.name}.npz"))
        assert sorted(after.files) == sorted(before)
        assert all(after[n].dtype == before[n].dtype and np.array_equal(after[n], before[n]) for n in before)


def test_a_program_of_torch_export_computes_the_same_for_any_batch(tmp_path: Path) -> None:
    model = made("R-ViT-Ti_16", 64, **SMALL)
    program = torch.export.load(write(model, "torch", tmp_path / "model.pt2")).module()
    for batch in (1, 3):
        x = torch.rand(batch, 3, 64, 64)
        assert (program(x) - model(x)).abs().max() <= BOUND


@pytest.mark.parametrize(
    ("to", "name", "options", "words"),
    [
        ("timm", "ViT-Ti_16", {"representation": 8}, "timm's models have no representation layer"),
        ("timm", "R26-ViT-S_32", {}, "timm computes std_eps as 0.0, the model as 1e-05"),
        ("timm", "ViT-Ti_16", {"layer_norm_eps": 1e-12}, "timm computes layer_norm_eps as 1e-06"),
        ("huggingface", "R26-ViT-S_32", {}, "has no ResNet before the encoder"),
        ("huggingface", "ViT-Ti_16", {"pool": "gap"}, "has no mean instead of the class token"),
        ("huggingface", "ViT-Ti_16", {"representation": 8}, "no representation layer"),
        ("huggingface", "DINOv2-S_14", {}, "reads class token and mean together"),
        ("npz", "DINOv2-S_14", {}, "layer_scale"),
        ("npz", "ViT-Ti_16", {"gelu": "exact"}, "Google's code computes gelu as tanh"),
        ("onnx", "ViT-Ti_16", {}, "format 'onnx' is unknown"),
        ("torch", "ViT-Ti_16", {}, "end in .pt2"),
    ],
)
def test_what_the_other_side_cannot_express_is_refused_by_name_and_leaves_nothing(
    to: str, name: str, options: dict, words: str, tmp_path: Path
) -> None:
    model = made(name, 64 if "R26" in name else 42 if "DINO" in name else 48, **options)
    with pytest.raises(VitcoreError, match=words):
        write(model, to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(VitcoreError, match="exists already"):
        write(made(), "npz", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
