"""The arithmetic of what a step keeps, against what torch keeps; and the plan's peak, against bytes that are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_memory import Live, built, kept_bytes
from vitcore_cpu.memory import free_and_total

from vitcore.backend import Keeps, resolve
from vitcore.config import Config
from vitcore.doctor.activations import How, activations
from vitcore.doctor.memory import Memory, estimate
from vitcore.doctor.sizes import sizes_of_config
from vitcore.model.variants import find_variant
from vitcore.origin import find_origin
from vitcore.plan import make_plan
from vitcore.plugins import load_plugins
from vitcore.runtime.remat import checkpointed
from vitcore.session import Session
from vitcore.step.ir import walk

WAYS = {"fp32": How(), "narrow": How(residual=2, product=2), "casts": How(product=2, casts=True)}
EVERYTHING = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1, "layer_scale": 0.1, "representation": 64}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "all"])
@pytest.mark.parametrize(
    ("name", "side", "rows", "fields"),
    [
        ("ViT-digits", 8, 64, {}),
        ("ViT-digits", 8, 64, {"depth": 1}),
        ("ViT-digits", 8, 64, {"depth": 4, **EVERYTHING}),
        ("ViT-digits", 8, 64, {"depth": 3, "dropout": 0.1, "pool": "gap"}),
        ("ViT-Ti_16", 64, 8, {"layer_scale": 0.1}),
        ("ViT-B_32", 96, 4, {}),
        ("R26-ViT-S_32", 64, 4, {}),
        ("R50-ViT-B_16", 70, 2, {}),  # sides that do not halve evenly
        ("R-ViT-Ti_16", 64, 4, {}),
    ],
)
def test_what_is_kept_is_what_torch_keeps(
    name: str, side: int, rows: int, fields: dict[str, Any], pooled: bool, way: str
) -> None:
    model = built(name, side, 10, narrow=way == "narrow", **fields)
    found = kept_bytes(model, rows, casts=way == "casts", pooled=pooled)
    planned = activations(
        find_variant(name).replace(**fields), (side, side), rows, 10, replace(WAYS[way], pooled=pooled)
    )
    assert planned.peak(remat=False) == pytest.approx(found, rel=0.002)


@pytest.mark.parametrize("way", ["fp32", "narrow"])
def test_what_is_kept_of_blocks_that_compute_twice(way: str) -> None:
    fields = {"depth": 4, **EVERYTHING, "attention_dropout": 0.0}
    model = built("ViT-digits", 8, 10, narrow=way == "narrow", on="cpu", **fields)
    found = kept_bytes(model, 64, run=checkpointed(nullcontext))
    planned = activations(find_variant("ViT-digits").replace(**fields), (8, 8), 64, 10, replace(WAYS[way], pooled=True))
    assert sum(k.bytes for k in planned.outside) + 4 * planned.inputs.bytes == pytest.approx(found, rel=0.002)
    # And while the backward computes a block again, all of that block.
    block = sum(k.bytes for k in planned.block)
    assert planned.peak(remat=True) == pytest.approx(found + block - planned.inputs.bytes, rel=0.002)


def attention_kernels() -> list[Any]:
    return [k for k in load_plugins().kernels("cpu") if k.op == "self_attention"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", attention_kernels(), ids=lambda k: k.name)
def test_a_kernel_of_attention_keeps_what_it_declares(kernel: Any, dtype: torch.dtype) -> None:
    narrow = dtype is torch.bfloat16
    if kernel.keeps.number and not narrow:
        pytest.skip("for narrow numbers alone")
    side, how = 8, WAYS["narrow" if narrow else "fp32"]
    fields = {"depth": 3, "pool": "gap"}  # 16 tokens, for kernels that fill up to that
    model = built("ViT-digits", side, 10, narrow=narrow, on="cpu", **fields)
    fn = resolve(kernel.fn)
    found = kept_bytes(model, 16, attention=lambda *args, **kwargs: fn(None, *args, **kwargs))
    planned = activations(
        find_variant("ViT-digits").replace(**fields), (side, side), 16, 10, replace(how, keeps=kernel.keeps)
    )
    assert planned.peak(remat=False) == pytest.approx(
        found, rel=0.01
    )  # norms keep sums in their own dtype here, in f32 there
    wrong = replace(how, keeps=replace(kernel.keeps, tokens=kernel.keeps.tokens + 1))
    more = activations(find_variant("ViT-digits").replace(**fields), (side, side), 16, 10, wrong)
    assert more.peak(remat=False) > 1.02 * found, "or the test would show nothing"


def planned_and_counted(**settings: Any) -> tuple[Memory, int]:
    """The plan, and the most bytes that were alive in two steps after the first."""
    config = Config(dataset="synthetic", backend="cpu", num_steps=3, workers=0, threads=1, **settings)
    plan, origin = make_plan(config), find_origin(config)
    with Live() as live, Session(plan, origin) as session:
        state, _ = session.start()
        for step in range(3):
            state = session.executable.step(state, {"lr": 0.01, **config.hypers(step)})
            if step == 0:
                live.again()
        sizes = sizes_of_config(config, origin.variant, session.dataset.num_classes)
    return estimate(plan.lowered, sizes, plan.kernels), live.most


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"remat": "blocks"},
        {"gradient_accumulation_steps": 2, "optimizer": "adamw"},
        {"gradient_accumulation_steps": 2, "disable_kernel": ("all",)},
        {"disable_kernel": ("all",)},
        {"precision": "bf16", "optimizer": "adamw", "dropout": 0.1},
        {"precision": "bf16", "remat": "blocks", "ema": 0.9},
        {"sam_rho": 0.05},
        {"freeze": "^(?!head)"},
        {"freeze": r"^(blocks\.[0-8]\.|patch|pos|cls)"},
    ],
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()),
)
def test_the_planned_peak_is_what_is_alive(settings: dict[str, Any]) -> None:
    memory, counted = planned_and_counted(model_type="ViT-Ti_16", img_size=64, train_batch_size=16, **settings)
    print(f"planned {memory.peak:,}, counted {counted:,}")
    # A forward that keeps nothing still makes something, of which the plan knows the backward's alone.
    assert (0.9 if "freeze" in settings else 0.97) * counted < memory.peak < 1.08 * counted


def test_a_large_model_needs_three_fifths_at_most_where_blocks_compute_twice() -> None:
    """ViT-L/16 at 384 pixels in micro-batches of 8: the plan, and on tensors without data what is kept after the forward."""
    peaks = {}
    for remat in ("none", "blocks"):
        config = Config(dataset="synthetic", backend="cpu", model_type="ViT-L_16", img_size=384, train_batch_size=8,
                        remat=remat)  # fmt: skip
        plan = make_plan(config, to_run=False)
        peaks[remat] = estimate(plan.lowered, sizes_of_config(config, find_origin(config).variant), plan.kernels)
    none, blocks = peaks["none"].peak, peaks["blocks"].peak
    print(f"planned peak: {none:,} bytes without, {blocks:,} with blocks, {100 * blocks / none:.1f} %")
    assert blocks <= 0.6 * none
    model = built("ViT-L_16", 384, 1000)
    how = How(pooled=True)
    found = activations(model.variant, (384, 384), 8, 1000, how)
    kept = {run is not None: kept_bytes(model, 8, run=run) for run in (None, checkpointed(nullcontext))}
    print(f"kept after the forward, by the reference: {kept[False]:,} bytes without, {kept[True]:,} with blocks")
    assert found.peak(remat=False) == pytest.approx(kept[False], rel=0.002)
    assert sum(k.bytes for k in found.outside) + 24 * found.inputs.bytes == pytest.approx(kept[True], rel=0.002)


def test_a_kernel_that_declares_nothing_is_said() -> None:
    config = Config(dataset="synthetic", backend="cpu", model_type="ViT-Ti_16", img_size=64)
    plan = make_plan(config, to_run=False)
    sizes = sizes_of_config(config, find_origin(config).variant)
    silent = tuple(replace(k, keeps=None) for k in plan.kernels)
    name = next(op.attrs["self_attention"] for op in walk(plan.lowered["train"].ops) if "self_attention" in op.attrs)
    assert estimate(plan.lowered, sizes, plan.kernels).said == ""
    assert f"what {name} keeps is not known" in estimate(plan.lowered, sizes, silent).said


def test_the_plan_in_one_line_and_the_largest_tensors() -> None:
    config = Config(dataset="synthetic", backend="cpu", model_type="ViT-B_16", img_size=224, train_batch_size=16,
                    gradient_accumulation_steps=2, disable_kernel=("all",))  # fmt: skip
    plan = make_plan(config, to_run=False)
    memory = estimate(plan.lowered, sizes_of_config(config, find_origin(config).variant), plan.kernels)
    said = memory.line(32 << 30)
    assert said.startswith("memory: parameters 330.2 MiB, gradients 660.5 MiB, optimizer 330.2 MiB, activations ")
    assert "(micro-batch of 8), peak about " in said and said.endswith(" of 32.0 GiB free")
    assert memory.line().endswith(" GiB") and len(memory.largest) == 8
    # Eleven blocks, for the last computes one token: 8 rows, 197 tokens, 3072 numbers.
    assert "blocks.mlp.fc1: 11 times 8x197x3072 numbers of 4 bytes, 203.2 MiB" in memory.largest


# ---- what is free ----


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Any]:
    """A machine of 100 GiB, of which 60 can be had, with control groups as they are written."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {100 << 20} kB\nMemFree: 5 kB\nMemAvailable: {60 << 20} kB\n")

    def ask(memberships: str, files: dict[str, str], **environment: str) -> tuple[int, int] | None:
        (tmp_path / "cgroup").write_text(memberships)
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(text)
        return free_and_total(environment, tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups")

    yield ask


GIB = 1 << 30


def test_without_limits_it_is_the_machines(machine: Any) -> None:
    assert machine("0::/a\n", {"a/memory.max": "max\n"}) == (60 * GIB, 100 * GIB)
    assert machine("", {}) == (60 * GIB, 100 * GIB)


def test_a_group_of_version_2_and_those_above_it_limit(machine: Any) -> None:
    files = {
        "memory.max": f"{20 * GIB}\n", "memory.current": f"{15 * GIB}\n", "memory.stat": f"anon 1\ninactive_file {4 * GIB}\n",
        "a/b/memory.max": f"{30 * GIB}\n", "a/b/memory.current": f"{GIB}\n", "a/b/memory.stat": "anon 1\n",
    }  # fmt: skip
    assert machine("0::/a/b\n", files) == (9 * GIB, 20 * GIB)
    assert machine("0::/a/b\n", files, LOCAL_WORLD_SIZE="4") == (9 * GIB // 4, 20 * GIB)


def test_a_group_of_version_1_limits(machine: Any) -> None:
    files = {
        "memory/a/memory.limit_in_bytes": f"{8 * GIB}\n", "memory/a/memory.usage_in_bytes": f"{6 * GIB}\n",
        "memory/a/memory.stat": f"total_inactive_file {GIB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "1\n",
        "memory/memory.stat": "",
    }  # fmt: skip
    assert machine("5:cpu,cpuacct:/a\n4:memory:/a\n", files) == (3 * GIB, 8 * GIB)


def test_more_used_than_allowed_leaves_nothing(machine: Any) -> None:
    files = {"memory.max": "10\n", "memory.current": "20\n", "memory.stat": ""}
    assert machine("0::/\n", files) == (0, 10)


def test_a_system_that_does_not_say_is_not_known(tmp_path: Path) -> None:
    assert free_and_total({}, tmp_path / "none") is None
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    assert free_and_total({}, tmp_path / "meminfo") is None


def test_this_machine_says_what_is_free() -> None:
    found = free_and_total()
    assert found is None or 0 < found[0] <= found[1]


def test_keeps_counts_as_the_reference_unless_it_is_said() -> None:
    variant = find_variant("ViT-Ti_16")
    reference = activations(variant, (64, 64), 4, 10, How()).peak(remat=False)
    assert activations(variant, (64, 64), 4, 10, How(keeps=Keeps())).peak(remat=False) == reference
