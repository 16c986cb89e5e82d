"""Some steps of a run under torch's profiler, each kernel's call under the name of its op; before and after, nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.profiler import profile, record_function

from vitcore.errors import VitcoreError
from vitcore.profiling.names import MARK, STEP, WAIT, op_of
from vitcore.profiling.spans import Spans, read
from vitcore.profiling.table import table
from vitcore.runtime.codegen import call_name
from vitcore.runtime.executable import Executable, State
from vitcore.step.ir import walk

TRACE, TABLE = "trace.json.gz", "table.txt"


class Profile:
    """Steps `first` to `last` of a run, counted from 1 where it begins; files go into `folder`.

    `step` stands in for the executable's own. Kernels are looked up on the runtime at each call, so they are wrapped
    while steps are profiled and are what they were afterwards.
    """

    def __init__(self, exe: Executable, folder: Path, first: int, last: int) -> None:
        self.exe, self.folder, self.first, self.last = exe, folder, first, last
        self.done = 0
        """Steps of this run so far."""
        self.spans: Spans | None = None
        """What was found, once the last step is over."""
        self._profiler: profile | None = None
        self._wrapped: dict[str, Any] = {}

    @property
    def is_next(self) -> bool:
        """Whether the next step is profiled."""
        return self.first <= self.done + 1 <= self.last

    def step(self, state: State, hyper: Mapping[str, float]) -> State:
        """One step of the executable, profiled if it is its turn; the last one ends when the device has done it."""
        self.done += 1
        if self.done == self.first:
            self._open()
        if self._profiler is None:
            return self.exe.step(state, hyper)
        try:
            with record_function(STEP):
                state = self.exe.step(state, hyper)
                if self.done == self.last:
                    self._wait()
        except BaseException:
            self._stop()
            raise
        if self.done == self.last:
            self._finish()
        return state

    def close(self) -> None:
        """End a profile that the run did not come to the end of; what there is of it is written."""
        if self._profiler is not None:
            self._finish()

    def text(self) -> str:
        """The table; empty before the end."""
        if self.spans is None:
            return ""
        ops = list(walk(self.exe.module["train"].ops))
        impls = {op.name: op.attrs["impl"] for op in ops if "impl" in op.attrs}
        notes = []
        if any(op.attrs.get("capture") for op in ops):
            notes.append("the step is launched as one recorded graph, in which no op has a name; --disable_pass capture_step "
                         "launches its ops one by one")  # fmt: skip
        return table(self.spans, impls, notes)

    def _open(self) -> None:
        # What the profiler's library says of devices that are not here is of no use to anyone.
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")
        self.exe.rt.wait()
        names = {call_name(op) for op in walk(self.exe.module["train"].ops) if "impl" in op.attrs}
        for name in sorted(names):
            self._wrap(name, op_of(name))
        self._wrap("mark", MARK)
        self._profiler = profile()
        self._profiler.start()

    def _wrap(self, name: str, span: str) -> None:
        method: Callable[..., Any] = getattr(self.exe.rt, name)

        @functools.wraps(method)
        def named(*args: Any, **kwargs: Any) -> Any:
            with record_function(span):
                return method(*args, **kwargs)

        self._wrapped[name] = vars(self.exe.rt).get(name)
        vars(self.exe.rt)[name] = named

    def _wait(self) -> None:
        with record_function(WAIT):
            self.exe.rt.wait()

    def _stop(self) -> profile:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.stop()
        for name, method in self._wrapped.items():
            if method is None:  # the class's own
                del vars(self.exe.rt)[name]
            else:
                vars(self.exe.rt)[name] = method
        self._wrapped.clear()
        return profiler

    def _finish(self) -> None:
        profiler = self._stop()
        self.spans = read(profiler.events())
        try:
            self.folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(self.folder / TRACE))
            (self.folder / TABLE).write_text(self.text() + "\n", encoding="utf-8")
        except OSError as e:
            raise VitcoreError(
                f"profile folder {self.folder}: cannot be written ({e.strerror}); choose another with --output_dir"
            ) from e


def check_steps(first: int, last: int, steps: int) -> None:
    """Refuse a range that is none, or that a run of so many steps does not come to."""
    if not 1 <= first <= last:
        raise VitcoreError(
            f"--profile_steps {first} {last} is no range; give the first and the last step, counted from 1"
        )
    if last > steps:
        raise VitcoreError(f"--profile_steps {first} {last} goes beyond the run's {steps} steps; give earlier ones")
