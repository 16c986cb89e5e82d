"""Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): a run in two stages, each a whole run.

With `probe_steps` stage one trains the head alone, in the run folder `probe` inside the run's own, and stage two fine-tunes
everything from where it ended, its head included. So the first updates of the features come from a head that fits them, and
not from one of zeros.

What the settings say holds in both stages, but for what stage one has of its own: its steps, its learning rate, what it
freezes; no warm-up, no average and no climb of SAM, since a head alone is a convex problem; and wsd's default cooldown. A
profile is of stage two.

`--resume RUN` goes on with stage two, or with stage one where stage two has not begun; `--resume RUN/probe`, or a checkpoint in
it, with stage one, and begins stage two anew after it. A signal ends the whole run, in either stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitcore.config import Config
from vitcore.plan import Plan, make_plan

if TYPE_CHECKING:
    from vitcore.training import Result

PROBE = "probe"
"""The run folder of stage one, inside the run's."""
ALL_BUT_THE_HEAD = r"^(?!head\.)"


def probe_config(config: Config, resume: str | None = None) -> Config:
    """The settings of stage one, which may go on from a checkpoint of its own."""
    rate = config.learning_rate if config.probe_learning_rate is None else config.probe_learning_rate
    return replace(
        config, output_dir=str(Path(config.output_dir) / config.name), name=PROBE, freeze=ALL_BUT_THE_HEAD,
        num_steps=config.probe_steps, learning_rate=rate, warmup_steps=0, cooldown_steps=0, layer_decay=1.0, ema=0.0,
        sam_rho=0.0, probe_steps=0, probe_learning_rate=None, resume=resume, profile=False,
    )  # fmt: skip


def plans(config: Config) -> Iterator[tuple[str, Plan]]:
    """What each stage would run, under its title, on any machine."""
    if config.probe_steps:
        yield "stage 1 of 2: the head alone", make_plan(probe_config(config, config.resume), to_run=False)
    yield "stage 2 of 2: fine-tuning" if config.probe_steps else "", make_plan(config, to_run=False)


def run(
    config: Config, *, say: Callable[[str], None], quiet: bool = False, stop_at: int | None = None,
    began: float | None = None,
) -> Result:  # fmt: skip
    """Train, in one stage or in two, and return the result of the last one that ran. `stop_at` ends the run after that step
    of the first stage that it runs, as a signal would, for tests of resuming. `began`: when the command was given, by
    `time.monotonic`, if that is not now."""
    began = time.monotonic() if began is None else began
    plan = make_plan(config)
    # From here on torch is imported, after the backend's environment is known.
    from vitcore.runtime.opening import set_environment

    set_environment(plan.backend, plan.plugins)
    from vitcore.training import train

    going_on = _probe_to_resume(config) if config.probe_steps else None
    if not config.probe_steps or (config.resume is not None and going_on is None):
        return train(plan, quiet=quiet, stop_at=stop_at, began=began)
    tell: Callable[[str], None] = say if plan.world.rank == 0 and not quiet else lambda line: None
    with _one_group(plan):
        return _two_stages(plan, going_on, tell, quiet, stop_at, began)


def _two_stages(
    plan: Plan, going_on: str | None, tell: Callable[[str], None], quiet: bool, stop_at: int | None, began: float
) -> Result:
    from vitcore.origin import after_probe
    from vitcore.training import train

    probe = probe_config(plan.config, going_on)
    if going_on is None and plan.config.pretrained_dir is None:
        tell(
            "the head is probed on RANDOM features, as there are no weights to start from; that is meant for tests only"
        )
    tell(f"stage 1 of 2: the head alone, {probe.num_steps} steps at a learning rate of {probe.learning_rate:g}")
    result = train(make_plan(probe), quiet=quiet, stop_at=stop_at, began=began)
    if result.steps < probe.num_steps:
        return result
    if (signum := _signal_to_any(plan, result.interrupted_by)) is not None:
        return replace(result, interrupted_by=signum)
    assert result.checkpoint is not None  # a stage that reached its end has one
    tell(f"stage 2 of 2: fine-tuning from {result.checkpoint}, its head included")
    tuned = replace(plan.config, pretrained_dir=result.checkpoint, resume=None, probe_steps=0, probe_learning_rate=None)
    # The programs do not depend on where the parameters come from, so the plan that was made first holds; but a run folder
    # that was resumed held no checkpoint that would have said which model is to be measured.
    plan = replace(plan, config=tuned) if going_on is None else make_plan(tuned)
    return train(plan, quiet=quiet, origin=after_probe(tuned))


@contextmanager
def _one_group(plan: Plan) -> Iterator[None]:
    """The ranks stay together from the first stage to the last."""
    from vitcore.runtime.distributed import close_group, open_group
    from vitcore.runtime.opening import open_backend

    open_backend(plan.backend, plan.plugins)
    joined = open_group(plan.backend, plan.world)
    try:
        yield
    finally:
        if joined:
            close_group()


def _signal_to_any(plan: Plan, signum: int | None) -> int | None:
    """The signal that came to any rank. They wait for each other here, so that what rank 0 wrote is there for all."""
    if plan.world.size == 1:
        return signum
    import torch

    from vitcore.runtime.distributed import every_rank

    votes = every_rank(signum or 0, torch.device(plan.backend.device))
    return next((round(vote) for vote in votes if vote), None)


def _probe_to_resume(config: Config) -> str | None:
    """What stage one goes on from: the checkpoint or run folder that --resume names, where it is of a stage one, or the one
    inside the run folder that it names, where stage two has not begun."""
    if config.resume is None:
        return None
    from vitcore.checkpoint import find, newest, read_record

    path = Path(config.resume)
    if newest(path) is None and newest(path / PROBE) is not None:
        return str(path / PROBE)
    of = read_record(find(path))["facts"].get("config", {})
    return config.resume if (of.get("name"), of.get("freeze")) == (PROBE, ALL_BUT_THE_HEAD) else None
