"""The trainer: steps, log steps, evaluations and checkpoints, in an order that is a function of the step alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitcore import rundir
from vitcore.announcing import announcement
from vitcore.checkpoint import newest
from vitcore.doctor.exhausted import memory_explained
from vitcore.doctor.fitting import ANOTHER_MODEL, smaller_evaluation, smaller_step
from vitcore.doctor.memory import Memory, estimate
from vitcore.doctor.sizes import sizes_of_config
from vitcore.errors import VitcoreError
from vitcore.interrupt import Interrupt
from vitcore.model.work import ASSUMED_CLASSES
from vitcore.origin import Origin, find_origin
from vitcore.plan import Plan
from vitcore.profiling.recorder import Profile, check_steps
from vitcore.progress import Progress
from vitcore.runtime.distributed import every_rank
from vitcore.runtime.executable import State
from vitcore.schedule import learning_rate
from vitcore.session import Session
from vitcore.stopwatch import Stopwatch


@dataclass(frozen=True)
class Result:
    """What a run came to. Rates leave out warm-up, evaluation and checkpoints."""

    accuracy: float
    correct: int
    total: int
    loss: float
    steps: int
    train_seconds: float
    images_per_second: float
    input_wait: float
    """Share of the time, 0 to 1, in which the loop waited for batches (`vitcore.stopwatch`)."""
    backend: str
    checkpoint: str | None
    run_dir: str
    interrupted_by: int | None = None
    seconds_to_first_step: float = float("nan")
    """From the start of the process, or from the call of `vitcore.recipe(...).train`, to the end of the run's first step;
    NaN for a run without one."""


class Trainer:
    """One run. `stop_at` ends it after that step as a signal would, for tests of resuming. `origin` is where its model comes
    from, where that is not what the configuration says alone. `began` is when the command was given, on the clock of
    `time.monotonic`; unset: now."""

    def __init__(
        self, plan: Plan, *, quiet: bool = False, stop_at: int | None = None, origin: Origin | None = None,
        began: float | None = None,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.stop_at, self.origin = plan.config, plan, stop_at, origin
        self.began = time.monotonic() if began is None else began
        self.to_first_step = float("nan")
        self.lead = plan.world.rank == 0
        self.quiet = quiet or not self.lead
        self.best = -1.0
        self.signum: int | None = None
        """The signal that ends the run, whichever rank it came to."""
        self.classes = ASSUMED_CLASSES

    def run(self) -> Result:
        """Train to the end, or to the step in which a signal came."""
        config = self.config
        origin = self.origin or find_origin(config)  # first: what is refused leaves no folder
        run_dir = rundir.prepare(config.output_dir, config.name)
        simulator = self.plan.backend.simulator
        self.folder = rundir.RunFolder(run_dir, write=self.lead, simulated=simulator.name if simulator else None)
        self.observers = [o for some in self.plan.plugins.ask("vitcore_observers", run_dir=str(run_dir)) for o in some]
        explained = memory_explained(lambda: self._planned(origin), self._helps)
        with explained, Session(self.plan, origin) as self.session, Interrupt() as self.interrupt:
            self.classes = self.session.dataset.num_classes
            state, step = self._start()
            exe = self.session.executable
            texts = (self.plan.show("text"), self.plan.show("lowered"), exe.source)
            self.folder.open({**config.as_dict(), "backend": self.plan.backend.name}, *texts, exe.fingerprint)
            self.progress = Progress(config.num_steps, step, show=not self.quiet)
            self.profile = self._profile_of(config.num_steps - step, run_dir)
            if self.lead and (moved := rundir.put_aside(run_dir, step)):
                self.progress.say(f"checkpoints of an earlier run, beyond step {step}, are now in {moved}")
            try:
                return self._loop(state, step, run_dir)
            finally:
                self._end_profile()
                self.progress.close()
                self.folder.close()

    def _planned(self, origin: Origin) -> Memory:
        """The memory that a step is planned to need."""
        sizes = sizes_of_config(self.config, origin.variant, self.classes)
        return estimate(self.plan.lowered, sizes, self.plan.kernels)

    def _helps(self, program: str) -> str:
        """What makes a program need less memory."""
        if program == "eval":
            return smaller_evaluation(self.config)
        step = program in ("train", "log")
        return smaller_step(self.config, self.plan.backend, self.plan.lowering.remat) if step else ANOTHER_MODEL

    def _profile_of(self, steps: int, run_dir: Path) -> Profile | None:
        """Of the steps that --profile_steps names; one rank looks at itself."""
        if not (self.config.profile and self.lead):
            return None
        check_steps(*self.config.profile_steps, steps)
        return Profile(self.session.executable, run_dir / "profile", *self.config.profile_steps)

    def _profiled(self, profile: Profile, state: State, hyper: Mapping[str, float], step: int) -> State:
        """The step after `step` under the profiler, whose time is in no rate."""
        exe, feed = self.session.executable, self.session.feed
        if profile.done + 1 == profile.first:
            exe.rt.wait()
            self.watch.lap(step, feed.waited)
        state = profile.step(state, hyper)
        self.watch.skip(step + 1, feed.waited)
        if profile.spans is not None:
            self._end_profile()
        return state

    def _end_profile(self) -> None:
        if self.profile is not None:
            self.profile.close()
            if text := self.profile.text():
                self.progress.say(f"profile, also in {self.profile.folder}, beside a trace for a browser:\n{text}")
            self.profile = None

    def _start(self) -> tuple[State, int]:
        self.watch = Stopwatch(0)
        self.said: list[str] = []
        if self.config.resume is None:
            state, self.said = self.session.start()
            return state, 0
        state, found = self.session.load(Path(self.config.resume))
        facts = found.facts
        self._check_resume(facts, found.path)
        self.best, self.watch = facts["best"], Stopwatch(facts["step"], facts["train_seconds"])
        return state, facts["step"]

    def _check_resume(self, facts: Mapping[str, Any], path: Path) -> None:
        """What decides the order of samples and the schedule must be as it was, or the run would be another."""
        if facts["images_per_step"] != self.session.images_per_step:
            raise VitcoreError(
                f"checkpoint {path}: its steps have {facts['images_per_step']} images, these have "
                f"{self.session.images_per_step}; set --train_batch_size so that all ranks together have as many"
            )
        if facts["config"]["seed"] != self.config.seed:
            its = facts["config"]["seed"]
            raise VitcoreError(
                f"checkpoint {path}: its seed is {its}, --seed is {self.config.seed}; resume with its own"
            )
        if facts["config"]["dataset"] != self.config.dataset:
            its = facts["config"]["dataset"]
            raise VitcoreError(
                f"checkpoint {path}: its data set is {its}, --dataset is {self.config.dataset}; resume with its own"
            )
        if facts["step"] > self.config.num_steps:
            beyond = f"beyond --num_steps {self.config.num_steps}; raise it"
            raise VitcoreError(f"checkpoint {path}: it is at step {facts['step']}, {beyond}")

    def _loop(self, state: State, step: int, run_dir: Path) -> Result:
        config, exe = self.config, self.session.executable
        for line in announcement(self.plan, self.session, self.said, self._planned(self.session.origin)):
            self.progress.say(line)
        self.progress.say(f"from step {step} to {config.num_steps}; run folder {self.folder.path}")
        save_every = config.save_every or config.eval_every
        last_log, saved, evaluated = step, None, None
        self.watch.start()
        while step < config.num_steps and not self._stop(step, last_log):
            rate = learning_rate(
                step,
                base=config.learning_rate,
                total=config.num_steps,
                warmup=config.warmup_steps,
                decay=config.decay_type,
                cooldown=config.cooldown_steps,
            )
            hyper = {"lr": rate, **config.hypers(step)}
            if self.profile is None:
                state = exe.step(state, hyper)
            else:
                state = self._profiled(self.profile, state, hyper, step)
            step += 1
            if self.to_first_step != self.to_first_step:
                self._first_step(step)
            self.progress.step(step)
            ends = step == config.num_steps
            due_eval = ends or _due(step, config.eval_every)
            due_save = ends or _due(step, save_every)
            # With several ranks a checkpoint, which rank 0 writes, could not hold sums that the others have not given.
            due_log = due_eval or due_save or _due(step, config.log_every)
            if due_log or step == self.watch.warm_at:
                exe.rt.wait()
                self.watch.lap(step, self.session.feed.waited)
            evaluated = None
            if due_log:
                state, last_log = self._log(state, step, rate), step
            if due_eval:
                state, evaluated = self._evaluate(state, step)
            if due_save:
                saved = self._save(state, step, evaluated, run_dir)
            if due_log:
                self.watch.start()
        return self._finish(state, step, saved, evaluated, run_dir)

    def _first_step(self, step: int) -> None:
        """Say how long it took; the device has then done it."""
        self.session.executable.rt.wait()
        self.to_first_step = round(time.monotonic() - self.began, 3)
        self.progress.say(f"first step after {self.to_first_step:.1f} s")
        self._tell("start", step, {"seconds_to_first_step": self.to_first_step})

    def _stop(self, step: int, last_log: int) -> bool:
        asked, self.signum = self.interrupt.asked or step == self.stop_at, self.interrupt.signum
        if self.plan.world.size == 1:
            return asked
        if step != last_log:
            return False
        # Several ranks vote, and only right after a log step, where they wait for each other anyway.
        # A vote is 0 to go on, else the signal, or -1 for stopping without one.
        votes = every_rank((self.signum or -1) if asked else 0, self.session.executable.rt.device)
        self.signum = next((round(vote) for vote in votes if vote > 0), None)
        return any(votes)

    @property
    def images_per_second(self) -> float:
        """Training images of all ranks a second, without warm-up, evaluation and checkpoints."""
        return self.watch.steps_per_second * self.session.images_per_step

    def _log(self, state: State, step: int, rate: float) -> State:
        state, report = self.session.executable.log(state)
        if report["bad_steps"]:
            first = step - round(report["steps"]) + round(report["first_bad_step"])
            raise VitcoreError(
                f"step {first}: the gradients are not finite ({round(report['bad_steps'])} steps since the last "
                "log); these updates were skipped; lower --learning_rate, add --warmup_steps, or --resume an earlier one"
            )
        values = {"loss": report["loss"] / report["loss_n"], "lr": rate,
                  "grad_norm": report["grad_norm"] / report["grad_norm_n"],
                  "images_per_second": self.images_per_second, "input_wait": self.watch.recent_input_wait()}  # fmt: skip
        pace = self.watch.steps_per_second
        self.progress.log(step, values, (self.config.num_steps - step) / pace if pace else float("nan"))
        self._tell("train", step, values)
        return state

    def _evaluate(self, state: State, step: int) -> tuple[State, dict[str, float]]:
        state, values = self.session.evaluate(state)
        counts = f"{values['correct']} of {values['total']}"
        self.progress.say(f"step {step}: accuracy {values['accuracy']:.2f} % ({counts}), loss {values['loss']:.4f}")
        self._tell("eval", step, values)
        return state, values

    def _tell(self, event: str, step: int, values: dict[str, float]) -> None:
        self.folder.record(event, step, values)
        for observer in self.observers:
            observer(event, {"step": step, **values})

    def _save(self, state: State, step: int, evaluated: dict[str, float] | None, run_dir: Path) -> Path:
        better = evaluated is not None and evaluated["accuracy"] > self.best
        self.best = max(self.best, evaluated["accuracy"] if evaluated else -1.0)
        facts = {"step": step, "best": self.best, "train_seconds": self.watch.seconds,
                 "images_per_step": self.session.images_per_step, "eval": evaluated}  # fmt: skip
        path = self.session.save(state, run_dir / "checkpoints" / f"step-{step:08d}", facts)
        if self.lead:
            if better:
                self.session.save(state, run_dir / "checkpoints" / "best", facts)
            self._prune(run_dir)
        self._tell("checkpoint", step, {})
        return path

    def _prune(self, run_dir: Path) -> None:
        """Remove what is older than the newest few; what a killed process left half written, saving removes."""
        for old in sorted((run_dir / "checkpoints").glob("step-*"))[: -self.config.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)

    def _finish(
        self, state: State, step: int, saved: Path | None, evaluated: dict[str, float] | None, run_dir: Path
    ) -> Result:
        signum = self.signum or self.interrupt.signum
        if step < self.config.num_steps:
            self.session.executable.rt.wait()
            self.watch.lap(step, self.session.feed.waited)
            if saved is None or saved.name != f"step-{step:08d}":
                saved = self._save(state, step, None, run_dir)
            self.progress.say(f"stopped after step {step}; go on with --resume {run_dir}")
        if evaluated is None:  # stopped between evaluations, or resumed at the end: nothing is known of this state yet
            evaluated = {"accuracy": float("nan"), "correct": 0, "total": 0, "loss": float("nan")}
            if step == self.config.num_steps:
                state, evaluated = self._evaluate(state, step)
        bad = self.session.feed.bad_images
        if bad:
            self.progress.say(f"{bad} image file(s) could not be read and were left out")
        return Result(
            evaluated["accuracy"], int(evaluated["correct"]), int(evaluated["total"]), evaluated["loss"], step,
            round(self.watch.seconds, 3), round(self.images_per_second, 2), round(self.watch.input_wait, 4),
            self.plan.backend.title,
            str(saved or newest(run_dir) or "") or None, str(run_dir), signum, self.to_first_step,
        )  # fmt: skip


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def train(
    plan: Plan,
    *,
    quiet: bool = False,
    stop_at: int | None = None,
    origin: Origin | None = None,
    began: float | None = None,
) -> Result:
    """Carry out a plan."""
    return Trainer(plan, quiet=quiet, stop_at=stop_at, origin=origin, began=began).run()


def result_dict(result: Result) -> dict[str, object]:
    """The result as JSON holds it: NaN becomes null."""
    return {k: None if isinstance(v, float) and v != v else v for k, v in asdict(result).items()}
