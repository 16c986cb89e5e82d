"""The programs around a step: they make, evaluate, read and restore the state that every rule shares."""

from __future__ import annotations

from vitcore.rules.spec import StepSpec


def lines(*texts: str) -> str:
    """A program's lines; what is empty is left out."""
    return "\n".join(filter(None, texts))


def parameters(spec: StepSpec) -> str:
    """The state as a program takes it; an average of the parameters is a part of it where there is one."""
    ema = "%e: ema<f32>, " if spec.ema else ""
    return f"%p: params<f32>, %o: opt<{spec.optimizer}>, {ema}%c: cursor, %k: key, %m: metrics"


def details(spec: StepSpec) -> str:
    """The attribute of the metrics' ops where an evaluation counts more than its few scalars."""
    return " {details=confusion|bins}" if spec.details else ""


def init(spec: StepSpec) -> str:
    """Makes the state, all of it now."""
    kind = spec.optimizer
    return lines(
        "step @init(%c: cursor, %k: key) [",
        "  %k1, %ki = rng.split %k {stream=init} : key, key",
        "  %p = model.init %ki : params<f32>",
        f"  %o = opt.init %p {{kind={kind}}} : opt<{kind}>",
        "  %e = ema.init %p : ema<f32>" if spec.ema else "",
        f"  %m = metrics.zero{details(spec)} : metrics",
        f"  return %p, %o, {'%e, ' if spec.ema else ''}%c, %k1, %m",
        "]",
    )


def eval_(spec: StepSpec) -> str:
    """Counts one batch of the evaluation split: by the average of the parameters where there is one."""
    weights, ty = ("%e", "ema<f32>") if spec.ema else ("%p", "params<f32>")
    return lines(
        f"step @eval({weights}: {ty}, %c: cursor, %m: metrics) [",
        "  %h, %c1 = data.next %c {split=eval} : batch<host>, cursor",
        "  %x = data.put %h : batch<dev>",
        f"  %y = model.apply {weights}, %x : logits",
        f"  %m1 = metrics.count %m, %y, %x{details(spec)} : metrics",
        "  return %c1, %m1",
        "]",
    )


def log(spec: StepSpec) -> str:
    """Reduces and reads the metrics, the only host read, and starts fresh ones."""
    return lines(
        "step @log(%m: metrics) [",
        "  %mr = metrics.all_reduce %m {group=dp} : metrics<synced>",
        "  %r = metrics.read %mr : report",
        f"  %m1 = metrics.zero{details(spec)} : metrics",
        "  return %m1, %r",
        "]",
    )


def restore(spec: StepSpec) -> str:
    """Gives back what was saved; lowering rebuilds here what is derived from it."""
    return lines(
        f"step @restore({parameters(spec)}) [",
        f"  return %p, %o, {'%e, ' if spec.ema else ''}%c, %k, %m",
        "]",
    )
