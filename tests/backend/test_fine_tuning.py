"""Fine-tuning from a file of weights follows the original: a zero head, a first update that does nothing, clipping before
momentum. The other side is timm's model, read from the same file by timm, in float64 under a loop written out here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from rig import checkpoint_of, contents, resume, train
from torch import Tensor

import vitcore
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.model.vit import VisionTransformer, build_model
from vitcore.origin import find_origin
from vitcore.plan import make_plan
from vitcore.schedule import learning_rate
from vitcore.session import Session
from vitcore.weights.write import write

SIZES: dict[str, Any] = {"width": 48, "depth": 2, "heads": 3, "mlp": 96}
BASE, WARMUP, STEPS, CLIP, MOMENTUM = 0.3, 2, 6, 0.05, 0.9
TUNED = Config(
    name="tuned", model_type=None, dataset="synthetic", img_size=32, train_batch_size=16, eval_batch_size=50,
    gradient_accumulation_steps=2, num_steps=STEPS, optimizer="sgdm", learning_rate=BASE, momentum=MOMENTUM,
    weight_decay=0.0, warmup_steps=WARMUP, max_grad_norm=CLIP, decay_type="cosine", log_every=1, eval_every=0, threads=1,
    backend="cpu", pretrained_dir="to be given", dropout=0.0,
)  # fmt: skip


def pretrained(folder: Path, *, size: int = 32, classes: int = 21, **options: Any) -> Path:
    """An npz in Google's layout, of a small model with no parameter at a value at which a mistake would not show."""
    model = build_model("ViT-Ti_16", size, classes, **{**SIZES, **options})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(around + torch.randn(p.shape, generator=generator) / (p[0].numel() if p.ndim > 1 else 10) ** 0.5)
    return write(model, "npz", folder / f"{len(list(folder.iterdir()))}.npz")


def settings(weights: Path, **changes: Any) -> Config:
    fields = {**TUNED.as_dict(), "pretrained_dir": str(weights), "output_dir": str(weights.parent), **changes}
    return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def opened(config: Config) -> Session:
    plan = make_plan(config)
    return Session(plan, find_origin(plan.config))


def reference(weights: Path, batches: list[tuple[Tensor, Tensor]], pool: str) -> tuple[list[float], Any]:
    """The losses of the original's steps, and the model after them: for update i the rate lr(i), the global norm clipped,
    then momentum."""
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2, act_layer="gelu_tanh",
        num_classes=10, class_token=pool == "token", global_pool=pool if pool == "token" else "avg", fc_norm=False,
    )  # fmt: skip
    model.load_pretrained(str(weights))
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    model.double().eval()
    params, losses = [*model.parameters()], []
    velocity = [torch.zeros_like(p) for p in params]
    for step, (images, labels) in enumerate(batches):
        loss = F.cross_entropy(model(images.double()), labels)
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, params)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        rate = BASE * min(1.0, step / WARMUP) * 0.5
        rate *= 1 + math.cos(math.pi * max(step - WARMUP, 0) / (STEPS - WARMUP))
        with torch.no_grad():
            for p, v, g in zip(params, velocity, grads):
                v.mul_(MOMENTUM).add_(g * min(1.0, CLIP / norm))
                p.sub_(rate * v)
    return losses, model


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_the_first_steps_are_those_of_the_original(pool: str, tmp_path: Path) -> None:
    weights = pretrained(tmp_path, pool=pool, representation=20)
    batches, losses = [], []
    with opened(settings(weights)) as session:
        exe, cursor = session.executable, 0
        for _ in range(STEPS):
            halves = []
            for _ in range(2):
                batch, cursor = session.feed.next_train(cursor)
                halves.append(batch)
            images = torch.cat([b.images for b in halves])
            images = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
            batches.append((images, torch.cat([b.labels for b in halves])))
        state, said = session.start()
        assert "the head of 10 classes starts at zero" in said
        assert "the representation layer (pre-logits) is dropped" in said
        start = [p.detach().clone() for p in exe.rt.own_params()]
        for step in range(STEPS):
            rate = learning_rate(step, base=BASE, total=STEPS, warmup=WARMUP, decay="cosine")
            state = exe.step(state, {"lr": rate, **session.config.hypers(0)})
            state, report = exe.log(state)
            losses.append(report["loss"] / report["loss_n"])
            assert report["grad_norm"] > CLIP, "clipping has work to do"
            if step == 0:
                assert all(torch.equal(a, b) for a, b in zip(start, exe.rt.own_params())), "lr(0) is 0"
        ours = dict(zip(exe.rt.names, (p.detach() for p in exe.rt.own_params())))
    expected, model = reference(weights, batches, pool)
    assert abs(losses[0] - math.log(10)) < 1e-6 and abs(losses[1] - math.log(10)) < 1e-6, "of a zero head, until lr(1)"
    assert max(abs(a - b) for a, b in zip(losses, expected)) < 2e-5, (losses, expected)
    assert losses[2] < losses[1] - 1e-3
    torch.save({n: t.float() for n, t in model.state_dict().items()}, tmp_path / "theirs.pth")
    theirs = dict(vitcore.load(tmp_path / "theirs.pth", heads=3).named_parameters())
    assert ours.keys() == theirs.keys()
    for name, p in ours.items():
        assert (p - theirs[name]).detach().abs().max() < 2e-5, name


# ---- which model a run trains ----


def test_a_files_model_is_trained_saved_resumed_and_evaluated(tmp_path: Path) -> None:
    weights = pretrained(tmp_path, pool="gap", size=48)
    config = settings(weights, save_every=2)
    train(config, stop_at=4)
    _, _, facts = contents(checkpoint_of(config, 4))
    assert facts["weights"] == f"{weights} (google)"
    assert facts["config"]["position_resampling"] == "bilinear"
    whole = train(settings(weights, name="whole"))
    went_on = resume(config)
    assert went_on.loss == whole.loss and went_on.steps == STEPS
    tensors, _, facts = contents(checkpoint_of(config, STEPS))
    assert facts["weights"] == f"{weights} (google)", "kept over a resume"
    model = vitcore.load(tmp_path / "tuned")
    assert model.variant.pool == "gap" and (model.variant.width, model.variant.mlp) == (48, 96)
    named = dict(model.named_parameters())
    assert all(torch.equal(t, named[n.removeprefix("params/")]) for n, t in tensors.items() if n.startswith("params/"))


def test_the_choice_of_resampling_is_another_start(tmp_path: Path) -> None:
    weights = pretrained(tmp_path, size=64)
    starts = {}
    for how in ("bilinear", "bicubic"):
        with opened(settings(weights, position_resampling=how)) as session:
            state, said = session.start()
            assert any(line.startswith(f"positions resampled from 4x4 to 2x2 patches, {how}") for line in said), said
            starts[how] = dict(zip(session.executable.rt.names, (p.detach() for p in state[0])))
            expected = vitcore.load(weights, 32, 10, positions=how)
            assert all(torch.equal(p, starts[how][n]) for n, p in expected.named_parameters())
    assert not torch.equal(starts["bilinear"]["pos_embed"], starts["bicubic"]["pos_embed"])


def start_of(config: Config) -> tuple[VisionTransformer, list[str]]:
    with opened(config) as session:
        state, said = session.start()
        model = VisionTransformer(session.variant, config.img_size, 10)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(state[0][session.executable.rt.names.index(name)])
        return model, said


def test_a_representation_is_kept_where_it_is_asked_for_and_drawn_where_the_file_has_none(tmp_path: Path) -> None:
    held, none = pretrained(tmp_path, representation=20), pretrained(tmp_path)
    own = dict(vitcore.load(held).named_parameters())
    model, said = start_of(settings(held, representation_size=20))
    kept = [n for n, _ in model.named_parameters() if n not in dict(start_of(settings(held))[0].named_parameters())]
    assert kept and all(torch.equal(dict(model.named_parameters())[n], own[n]) for n in kept)
    assert said[1:] == ["the head of 10 classes starts at zero"]
    model, said = start_of(settings(none, representation_size=24))
    drawn = dict(model.named_parameters())
    assert "the representation layer (pre-logits) is not in the file: it starts at random" in said
    assert [tuple(drawn[n].shape) for n in kept if n.endswith("weight")] == [(24, 48)]
    assert all(drawn[n].std() > 0 for n in kept if n.endswith("weight"))
    assert torch.equal(start_of(settings(none, representation_size=24))[0].pos_embed, model.pos_embed)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "ViT-B_16"}, ["--model_type ViT-B_16", "width 48", "width 768"]),
        ({"model_type": "ViT-B_32"}, ["patch 16", "patch 32"]),
        ({"pool": "gap"}, ["pool 'token'", "'gap'"]),
        ({"representation_size": 21}, ["representation of width 20", "--representation_size is 21"]),
    ],
)
def test_what_is_stated_and_not_the_files_is_refused_with_both(
    changes: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    weights = pretrained(tmp_path, representation=20)
    with pytest.raises(VitcoreError) as refused:
        find_origin(settings(weights, **changes))
    assert all(part in str(refused.value) for part in [*parts, str(weights)]), refused.value
    assert "\n" not in str(refused.value)
