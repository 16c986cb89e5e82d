"""The op lists of the vendor's former mixed precision (hmp, option O1), as lists that autocast on the device reads.

Autocast reads two files once, when the library is loaded; each replaces a whole default list (bridge:
hpu_ops/autocast_helpers.h, hpu_ops/backend/autocast_helpers.cpp:27). It knows functional ATen names, and no op in place (bridge:
scripts/gen_op.py:1055). So a list of hmp is translated, and what it then means otherwise is said.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vitcore.api import VitcoreError
from vitcore.errors import nearest

VARIABLES = {"bf16": "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "fp32": "PT_HPU_AUTOCAST_FP32_OPS_LIST"}
STANDARD = {kind: Path(__file__).parent / "op_lists" / f"ops_{kind}.txt" for kind in VARIABLES}
"""The original's two lists (Model-References 1.6.1, ViT/ops_bf16.txt and ops_fp32.txt), translated."""

# What autocast registers: the default lists (bridge: hpu_ops/autocast_helpers.h) without the names that never take effect.
REGISTERED = frozenset("""
    addmm addbmm batch_norm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d dot dropout
    feature_dropout group_norm instance_norm layer_norm leaky_relu linear matmul mean mm mul mv softmax log_softmax
    scaled_dot_product_attention acos addcdiv asin atan2 bilinear binary_cross_entropy binary_cross_entropy_with_logits cdist cosh
    cosine_embedding_loss cosine_similarity cross_entropy_loss dist div divide embedding embedding_bag erfinv exp expm1
    hinge_embedding_loss huber_loss kl_div l1_loss log log10 log1p log2 logsumexp margin_ranking_loss mse_loss multi_margin_loss
    multilabel_margin_loss nll_loss pdist poisson_nll_loss pow reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss
    softplus tan topk triplet_margin_loss true_divide add addcmul cat sub stack
""".split())  # fmt: skip

# hmp's names that are others here; None where autocast has no such op.
_RENAMED: dict[str, str | None] = {"cross_entropy": "cross_entropy_loss", "truediv": "div", "iadd": None, "rsub": None}

# Where an entry, or its absence, does not mean what it meant.
_INEXACT = {
    "add": "add is narrowed, but not where it writes in place",
    "iadd": "iadd is unknown to autocast and keeps the dtype of what it writes into",
    "rsub": "rsub is unknown to autocast and computes in the dtype of its input",
    "layer_norm": "of layer_norm the input alone is narrowed, not weight and bias",
}
_ABSENT = {
    "div": "div, on no list, takes the widest dtype of its operands and not the first's",
    "conv2d": "conv2d, on no list, stays in the dtype of its input as before",
    "log_softmax": "log_softmax, on no list, computes in the dtype of its input as before",
}
_FP32 = {"log_softmax": "log_softmax is fp32 where it is called, and in cross_entropy as a part of it"}
DEFAULTS = (
    "autocast's default lists hold: unlike O1, conv2d and a log_softmax called directly are bf16, div is fp32, add takes the "
    "widest dtype of its operands, iadd and rsub are unknown, and of layer_norm the input alone is narrowed"
)


def translate(text: str, where: str) -> tuple[list[str], list[str]]:
    """The names that autocast takes, and hmp's names, of a list; an unknown op is an error that names file and line."""
    names, given = dict[str, None](), list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        if name not in _RENAMED and name not in REGISTERED:
            close = nearest(name, [*_RENAMED, *sorted(REGISTERED)])
            raise VitcoreError(f"{where}, line {number}: {name!r} is no op that autocast knows{close}; correct the name or "
                               "take the line out")  # fmt: skip
        given.append(name)
        target = _RENAMED.get(name, name)
        if target is not None:
            names[target] = None
    return [*names], given


def inexact(kind: str, given: list[str]) -> list[str]:
    """What a list of hmp means otherwise under autocast, a clause for each entry."""
    if kind == "fp32":
        return [_FP32[name] for name in given if name in _FP32]
    present = [_INEXACT[name] for name in given if name in _INEXACT]
    return present + [said for name, said in _ABSENT.items() if name not in given]


def list_for(kind: str, named: str) -> tuple[Path, list[str], bool]:
    """The file that autocast is to read for a list of hmp's, what hmp's list held, and whether it is the shipped one.

    The standard names, where no file is there, mean the original's lists. A user's file is translated into the cache, under a
    name made of its content, so that it is written once and never changed.
    """
    source = Path(named).expanduser()
    if not source.exists() and source.name == named == STANDARD[kind].name:
        return STANDARD[kind], _ORIGINAL[kind].split(), True
    try:
        names, given = translate(source.read_text(encoding="utf-8"), named)
    except (OSError, UnicodeDecodeError) as e:
        why = (e.strerror or str(e)) if isinstance(e, OSError) else "it is no text"
        raise VitcoreError(f"--hmp-{kind} {named}: the list cannot be read ({why}); give a file with one op a line, or leave the "
                           "flag out for the original's list") from e  # fmt: skip
    if not names:
        raise VitcoreError(f"--hmp-{kind} {named}: the list names no op that autocast knows; give at least one, or leave the "
                           "flag out")  # fmt: skip
    return _written("".join(f"{name}\n" for name in names)), given, False


_ORIGINAL = {
    "bf16": "add addmm bmm dot iadd layer_norm matmul mm rsub softmax mul mean dropout linear",
    "fp32": "cross_entropy log_softmax embedding binary_cross_entropy",
}


def _written(text: str) -> Path:
    root = (
        os.environ.get("VITCORE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitcore"
    )
    path = Path(root).expanduser() / "hpu_op_lists" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8", newline="\n")
            temporary.replace(path)
        except OSError as e:
            raise VitcoreError(f"{path}: the translated op list cannot be written ({e.strerror}); set XDG_CACHE_HOME to a folder "
                               "that can be written") from e  # fmt: skip
    return path
