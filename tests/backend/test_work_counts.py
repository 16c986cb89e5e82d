"""What a step computes and makes, counted op by op as torch sees it: what is not read is not computed, and nothing twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from rig import HYPER, spec
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from wide import CLASSES, SIDE, SMALL, begun, opened

from vitcore.model.variants import Variant
from vitcore.runtime.executable import Executable
from vitcore.runtime.fused_leaf import _Places
from vitcore.step.ir import Group

B, EVAL_B = 4, 3
TOKENS = (SIDE // SMALL.patch) ** 2 + 1
MORE = {**HYPER, "ema_keep": 0.9}
PICTURES = r"^patch_embed|^pos_embed|^cls_token"


class Seen(TorchDispatchMode):
    """Every op, with the shapes and dtypes of what it is given and makes."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        some = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
        self.ops.append((func.overloadpacket.__name__, some, made))
        return out

    @property
    def names(self) -> Counter[str]:
        return Counter(name for name, _, _ in self.ops)


def seen_in_a_step(exe: Executable) -> Seen:
    """The second step, when all that stays is made."""
    state = exe.step(begun(exe), MORE)
    with Seen() as seen:
        exe.step(state, MORE)
    exe.close()
    return seen


def flops(variant: Variant, disabled: tuple[str, ...], evaluated: bool) -> int:
    exe = opened(spec("sgdm", clip=False), variant, disabled=disabled)
    state = begun(exe)
    with FlopCounterMode(display=False) as counter:
        state = exe.eval(state, 1) if evaluated else exe.step(state, MORE)
    exe.close()
    return int(counter.get_total_flops())


def unread(variant: Variant, rows: int) -> int:
    """Of one forward: floating-point operations in the products of the last block for all tokens but one: its queries and
    output projection, its scores and their product with v, its MLP."""
    d, m, idle = variant.width, variant.mlp, rows * (TOKENS - 1)
    return 2 * idle * (d * d + d * d + 2 * d * m) + 2 * 2 * idle * TOKENS * d


@pytest.mark.parametrize("depth", [1, 3])
def test_the_last_blocks_work_falls_by_what_nobody_reads(depth: int) -> None:
    variant = SMALL.replace(depth=depth)
    with_all, without = (flops(variant, d, evaluated=True) for d in (("skip_unread",), ()))
    # The kernel for all tokens works on whole 16s, and its scores too.
    padded = -(-TOKENS // 16) * 16
    more = 4 * EVAL_B * SMALL.width * (padded * padded - TOKENS * TOKENS)
    assert with_all - without == unread(variant, EVAL_B) + more
    # The backward of a product is two.
    with_all, without = (flops(variant, d, evaluated=False) for d in (("skip_unread",), ()))
    more = 3 * 4 * B * SMALL.width * (padded * padded - TOKENS * TOKENS)
    assert with_all - without == 3 * unread(variant, B) + more


def test_of_a_mean_over_tokens_all_are_read() -> None:
    gap = SMALL.replace(pool="gap")
    assert flops(gap, (), evaluated=False) == flops(gap, ("skip_unread",), evaluated=False)


@pytest.mark.parametrize("norm", [True, False], ids=["its norm trained", "its norm frozen"])
def test_nothing_is_computed_for_pictures_and_frozen_parameters(norm: bool) -> None:
    """With all but the last block frozen, and with that block's first norm frozen too."""
    more = "" if norm else r"|^blocks\.2\.norm1"
    groups = (Group("frozen", r"^blocks\.[01]\.|" + PICTURES + more, frozen=True), Group("all"))
    exe = opened(spec("sgdm", clip=False, groups=groups))
    state = exe.step(begun(exe), MORE)
    with FlopCounterMode(display=False) as counter:
        state = exe.step(state, MORE)
    total = counter.get_total_flops()
    forward = opened(spec("sgdm", clip=False))
    held = begun(forward)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward.rt.bind(held[0], training=True, functions={"self_attention": "products_padded"})
        assert forward.rt.feed is not None
        forward.rt.model(forward.rt.feed.next_train(0)[0].images, reads="pooled")
    # Of the backward, the head's and the last block's alone, twice their forward's, without what leads to frozen parts alone:
    # the gradient of what the last block's query, keys and values are made of.
    d, m, n = SMALL.width, SMALL.mlp, TOKENS
    last = 2 * B * (d * d + 2 * n * d * d + 2 * n * d + d * d + 2 * d * m) + 2 * B * d * CLASSES
    to_input = 2 * B * (d * d + 2 * n * d * d)
    assert total - counter.get_total_flops() == 2 * last - (0 if norm else to_input)
    exe.close()
    forward.close()


def test_no_gradient_of_the_pictures_is_made() -> None:
    seen = seen_in_a_step(opened(spec("sgdm", clip=False)))
    patches, pixels = (B, TOKENS, 3 * SMALL.patch**2), (B, 3, SIDE, SIDE)
    floats = [name for name, _, made in seen.ops for t in made if t.is_floating_point() and t.shape in (pixels,)]
    assert floats == [], "no picture of floats is there, in the forward or the backward"
    # The patches become numbers, and have 128 taken off: in no other op.
    made = Counter(n for n, _, out in seen.ops for t in out if t.is_floating_point() and tuple(t.shape) == patches)
    assert {n for n in made if n not in ("view", "_unsafe_view", "t", "transpose", "detach", "alias")} == {
        "_to_copy",
        "sub",
    }


def test_with_pictures_of_floats_one_is_made() -> None:
    """So that the check above can fail."""
    seen = seen_in_a_step(opened(spec("sgdm", clip=False), disabled=("keep_bytes",)))
    assert any(t.is_floating_point() and t.shape == (B, 3, SIDE, SIDE) for _, _, made in seen.ops for t in made)


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_tokens_are_never_joined(pool: str) -> None:
    seen = seen_in_a_step(opened(spec("sgdm", clip=False), SMALL.replace(pool=pool)))
    joined = [t.shape for name, _, made in seen.ops if name == "cat" for t in made]
    # What all pictures have in common: the class token in front of the patches' bias.
    assert joined == ([(TOKENS, SMALL.width)] if pool == "token" else [])


def test_the_loss_and_the_counts_take_one_softmax_each() -> None:
    exe = opened(spec("sgdm", clip=False))
    state = begun(exe)
    with Seen() as trained:
        state = exe.step(state, MORE)
    with Seen() as evaluated:
        exe.eval(state, 1)
    exe.close()
    assert (trained.names["_log_softmax"], trained.names["_log_softmax_backward_data"]) == (1, 1)
    assert evaluated.names["_log_softmax"] == 1


def test_all_that_is_done_alike_is_done_to_whole_buffers() -> None:
    groups = (Group("none", r"bias$|norm", weight_decay=0.0), Group("all"))
    exe = opened(spec("adamw", 2, ema=True, groups=groups))
    size = exe.rt.layout.trained
    seen = seen_in_a_step(exe)
    updates = [some for name, some, _ in seen.ops if name == "_fused_adamw_"]
    # One a group, each of one parameter, gradient and two slots, a count and a flag.
    spans = sorted(s.stop - s.start for s in exe.rt.layout.spans.values())
    assert sorted(max(t.numel() for t in some) for some in updates) == spans
    assert all(len([t for t in some if t.dim()]) == 4 for some in updates)
    # The sum is scaled, clipped, and the average moved, by one op each of all numbers.
    whole = Counter(name for name, some, _ in seen.ops if some and some[0].shape == (size,))
    assert whole["_foreach_mul_"] == 2 and whole["lerp_"] + whole["mul_"] == 1 and whole["zero_"] == 1, whole
    assert seen.names["_foreach_norm"] <= 1 and seen.names["linalg_vector_norm"] <= 3
    small = [n for n, some, _ in seen.ops if n.startswith("_foreach") and len([t for t in some if t.dim()]) > 2]
    assert small == [], "nothing is done tensor by tensor"


def test_gradients_are_put_in_their_places_once() -> None:
    """One write a parameter and micro-batch, and no second bundle of them."""
    exe = opened(spec("sgdm", 3, clip=False))
    names = len(exe.rt.names)
    seen = seen_in_a_step(exe)
    ((flat, _),) = _Places.of(exe.rt)._buffers  # one buffer, step after step
    place = flat.untyped_storage().data_ptr()
    writes = Counter(
        name for name, some, _ in seen.ops if name.endswith("_") and some[0].untyped_storage().data_ptr() == place
    )
    assert writes["add_"] == 3 * names, writes
    assert writes.total() - writes["index_fill_"] == 3 * names + 2, writes  # and zeros before, a factor after
