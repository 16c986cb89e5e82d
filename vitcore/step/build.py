"""Build the programs of a recipe: what a training step means, once, for every device."""

from __future__ import annotations

from dataclasses import dataclass

from vitcore.errors import VitcoreError, nearest
from vitcore.step.ir import Group, Module
from vitcore.step.text import parse
from vitcore.step.verify import verify_module

# Each optimizer's scalars that may change from step to step; they travel in `%hyper` (rule V8).
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "sgdm": ("lr", "weight_decay", "momentum"),
    "adamw": ("lr", "weight_decay", "beta1", "beta2", "eps"),
}


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """What the programs depend on; everything else of a recipe is data that flows through them."""

    name: str
    optimizer: str
    accumulation: int = 1
    clip: bool = True
    label_smoothing: float = 0.0
    groups: tuple[Group, ...] = (Group("all"),)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            close = nearest(self.optimizer, [*OPTIMIZERS])
            raise VitcoreError(f"optimizer {self.optimizer!r} is unknown{close}; choose one of {known}")
        if self.accumulation < 1:
            raise VitcoreError(f"accumulation of {self.accumulation} micro-batches makes no step; make it at least 1")

    @property
    def hypers(self) -> tuple[str, ...]:
        """The names that `%hyper` must hold for this step."""
        return (*OPTIMIZERS[self.optimizer], *(("max_norm",) if self.clip else ()))


_INIT = """step @init(%c: cursor, %k: key) [
  %k1, %ki = rng.split %k {{stream=init}} : key, key
  %p = model.init %ki : params<f32>
  %o = opt.init %p {{kind={kind}}} : opt<{kind}>
  %m = metrics.zero : metrics
  return %p, %o, %c, %k1, %m
]"""

_TRAIN = """step @train(%p: params<f32>, %o: opt<{kind}>, %c: cursor, %k: key, %m: metrics, %hyper: hyper) [
  %g0 = grads.zero %p : grads<f32 sum partial>
  %g, %c1, %k1, %m1 = repeat %g0, %c, %k, %m {{n={n}}}
      (%ga: grads<f32 sum partial>, %ca: cursor, %ka: key, %ma: metrics) [
    %h, %cb = data.next %ca : batch<host>, cursor
    %x = data.put %h : batch<dev>
    %kb, %kf = rng.split %ka : key, key
    %loss, %t = model.forward %p, %x, %kf{loss} : scalar<f32>, tape
    %d = model.backward %t : grads<f32 sum partial>
    %gb = grads.add %ga, %d : grads<f32 sum partial>
    %mb = metrics.add %ma, %loss {{name=loss}} : metrics
    yield %gb, %cb, %kb, %mb
  ]
  %gs = grads.scale %g {{by=1/{n}}} : grads<f32 mean partial>
  %gr = grads.all_reduce %gs {{group=dp}} : grads<f32 mean synced>
  {norm}
  %m2 = metrics.add %m1, %norm {{name=grad_norm}} : metrics
  %m3, %ok = health.check %m2, %norm : metrics, flag
  %p1, %o1 = opt.update %p, %o, {ready}, %hyper, %ok : params<f32>, opt<{kind}>
  return %p1, %o1, %c1, %k1, %m3
]"""

_EVAL = """step @eval(%p: params<f32>, %c: cursor, %m: metrics) [
  %h, %c1 = data.next %c {split=eval} : batch<host>, cursor
  %x = data.put %h : batch<dev>
  %y = model.apply %p, %x : logits
  %m1 = metrics.count %m, %y, %x : metrics
  return %c1, %m1
]"""

_LOG = """step @log(%m: metrics) [
  %mr = metrics.all_reduce %m {group=dp} : metrics<synced>
  %r = metrics.read %mr : report
  %m1 = metrics.zero : metrics
  return %m1, %r
]"""

_RESTORE = """step @restore(%p: params<f32>, %o: opt<{kind}>, %c: cursor, %k: key, %m: metrics) [
  return %p, %o, %c, %k, %m
]"""


def build(spec: StepSpec) -> Module:
    """The neutral module of a recipe: `init`, `train`, `eval`, `log` and `restore`, verified."""
    smoothing = f" {{label_smoothing={spec.label_smoothing!r}}}" if spec.label_smoothing else ""
    clipped = "%gc, %norm = grads.clip %gr, %hyper : grads<f32 mean synced>, scalar<f32>"
    norm, ready = (clipped, "%gc") if spec.clip else ("%norm = grads.norm %gr : scalar<f32>", "%gr")
    fill = {"kind": spec.optimizer, "n": spec.accumulation, "loss": smoothing, "norm": norm, "ready": ready}
    texts = (_INIT.format(**fill), _TRAIN.format(**fill), _EVAL, _LOG, _RESTORE.format(**fill))
    attrs = {"optimizer": spec.optimizer, "hyper": "|".join(spec.hypers)}
    return verify_module(Module(spec.name, attrs, spec.groups, tuple(map(parse, texts))))
