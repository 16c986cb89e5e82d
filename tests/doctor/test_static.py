"""What the lowered text says: relations that hold whatever kernels a backend claims."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from vitcore.commandline import resolve_config
from vitcore.doctor.costs import kernel_costs
from vitcore.doctor.examination import examine
from vitcore.doctor.flushes import predicted
from vitcore.doctor.static import causes, flattened, read_module
from vitcore.plan import Plan, make_plan


def plan(*argv: str) -> Plan:
    return make_plan(resolve_config(argv, "vitcore explain", "").config, to_run=False)


@pytest.fixture(scope="module")
def lazy() -> Plan:
    return plan("--backend", "hpu-lazy", "--gradient_accumulation_steps", "16")


def test_every_cause_is_counted_and_their_sum_is_what_is_predicted(lazy: Plan) -> None:
    for name, outline in read_module(lazy.lowered).items():
        reads = sum(item.kind == "read" for item, _ in flattened(outline.items))
        assert sum(outline.causes.values()) == predicted(lazy.lowered[name].ops) + reads
        assert outline.reads == (1 if name == "log" else 0)
        assert outline.graphs_again == 0 < outline.graphs


def test_a_loop_is_counted_and_outlined_once(lazy: Plan) -> None:
    train = read_module(lazy.lowered)["train"]
    (loop,) = (item for item in train.items if item.kind == "loop")
    assert loop.times == 16
    assert all(times % 16 == 0 for times in causes((loop,)).values())
    assert train.regions > 2 * 16 > train.graphs


def test_regions_come_in_order_with_their_ops(lazy: Plan) -> None:
    regions = [i for i, _ in flattened(read_module(lazy.lowered)["train"].items) if i.kind == "region"]
    ops = [op.partition(" by ")[0] for region in regions for op in region.ops]
    wanted = ["model.forward", "model.backward", "grads.scale", "grads.clip", "opt.update"]
    assert [op for op in ops if op in wanted] == wanted and "grads.zero" in ops


def test_a_claimed_kernel_costs_what_leaving_it_out_saves(lazy: Plan) -> None:
    costs = kernel_costs(lazy)
    assert costs
    for cost in costs:
        argv = ("--backend", "hpu-lazy", "--gradient_accumulation_steps", "16", "--disable_kernel", cost.kernel)
        assert cost.reference == predicted(plan(*argv).lowered[cost.program].ops), cost
        assert cost.flushes == predicted(lazy.lowered[cost.program].ops)
        assert str(cost) in lazy.explain()
    # The vendor's optimizers flush by themselves.
    update = next(c for c in costs if c.op == "opt.update")
    assert update.flushes > update.reference and "more than the reference" in str(update)


def test_a_backend_that_is_not_lazy_has_regions_and_no_flushes() -> None:
    eager = plan("--backend", "cpu")
    report = examine(eager, run=False)
    assert not report.lazy and not report.costs and report.programs["train"].regions == 1
    assert all(not (o.flushes or o.marks or o.causes or o.graphs) for o in report.programs.values())
    assert "not lazy: no flushes" in report.table() and "what claimed kernels cost" not in eager.explain()


def test_the_static_part_of_the_text_imports_no_torch() -> None:
    code = "import sys, vitcore.doctor.static, vitcore.doctor.costs, vitcore.explain; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_bytes_follow_the_sizes() -> None:
    small = examine(plan("--backend", "hpu-lazy", "--train_batch_size", "16", "--dropout", "0.1"), run=False)
    large = examine(plan("--backend", "hpu-lazy", "--train_batch_size", "32", "--dropout", "0.1"), run=False)
    assert small.memory and large.memory and small.traffic and large.traffic
    assert 0 <= 2 * small.memory.activations - large.memory.activations < 100, "but for a few scalars"
    assert large.memory.parameters == small.memory.parameters == 4 * 39610
    # 16 more digits of 64 f32 pixels, a label, a weight and a key.
    assert large.traffic.copied_bytes["train"] - small.traffic.copied_bytes["train"] == 16 * (64 * 4 + 8 + 4 + 4)
    assert large.traffic.copies == small.traffic.copies
    assert small.traffic.host_reads == {"train": 0, "eval": 0, "log": 1}


def test_narrow_activations_and_an_sgd_without_accumulation_take_less() -> None:
    base = ("--backend", "hpu-lazy", "--optimizer", "sgdm")
    wide, narrow, sums = (
        examine(plan(*base, *more), run=False).memory
        for more in ((), ("--precision", "bf16"), ("--gradient_accumulation_steps", "2"))
    )
    assert wide and narrow and sums
    assert narrow.activations < wide.activations and "bf16-casts" in narrow.said
    assert wide.optimizer == wide.gradients == wide.parameters and sums.gradients == 2 * wide.parameters
    assert 0.9 * wide.activations < 2 * sums.activations < 1.1 * wide.activations


def test_ranks_reduce_the_gradients_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    report = examine(plan("--backend", "hpu-lazy"), run=False)
    assert report.world == 2 and report.traffic and report.memory
    assert report.traffic.reductions == {"train": 1, "eval": 0, "log": 1}
    assert report.traffic.reduced_bytes["train"] == report.memory.parameters == report.memory.reduction


def test_what_is_not_here_is_assumed_and_said() -> None:
    report = examine(plan("--backend", "hpu-lazy", "--recipe", "imagenet1k_sgd"), run=False)
    assert report.memory and "ViT-B_16 is assumed" in report.memory.said and "1000 classes" in report.memory.said
    assert report.memory.parameters == 4 * 86_859_496 or report.memory.parameters > 4 * 85_000_000


def test_the_report_is_plain_data(lazy: Plan) -> None:
    report = examine(lazy, run=False)
    data: dict[str, Any] = report.as_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["programs"]["train"]["flushes"] == report.programs["train"].flushes and data["run"] is None
    assert {c["said"] for c in data["costs"]} == set(map(str, report.costs))
