"""Training processes for the tests of faults: started from a server that has imported torch once, so that a process
costs what it trains and not what it imports."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vitcore.training", "torch.utils.tensorboard"])
TIMEOUT = 90.0


class Sleeper:
    """An observer that says so in a file and sleeps, in the log of a step."""

    def __init__(self, step: int) -> None:
        from vitcore.api import hookimpl

        def observers(run_dir: str) -> list[Callable[[str, dict[str, Any]], None]]:
            def hears(event: str, values: dict[str, Any]) -> None:
                if event == "train" and values["step"] == step:
                    (Path(run_dir) / "sleeping").touch()
                    time.sleep(TIMEOUT)

            return [hears]

        self.vitcore_observers = hookimpl(observers)


def _run(argv: list[str], stderr: str, sleep_at: int | None) -> None:
    """`vitcore ARGV` in this process, with its standard error in a file."""
    file = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["VITCORE_DEBUG"] = "0"  # its traceback is for us, and here we look that there is none
    from vitcore.cli import main
    from vitcore.plugins import load_plugins

    if sleep_at is not None:
        load_plugins().manager.register(Sleeper(sleep_at), name="sleeper")
    sys.exit(main(argv))


def start(argv: Sequence[str], stderr: Path, sleep_at: int | None = None) -> BaseProcess:
    """A process that runs the command; `sleep_at`: it sleeps in the log of that step."""
    process = CONTEXT.Process(target=_run, args=([*argv], str(stderr), sleep_at))
    process.start()
    return process


def end(process: BaseProcess, within: float = TIMEOUT) -> int:
    """Wait for it; its exit code, negative for the signal that killed it."""
    process.join(within)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"the process did not end within {within} s")
    assert process.exitcode is not None
    return process.exitcode


def wait_for(what: Callable[[], Any], process: BaseProcess | None = None) -> Any:
    """Poll until it is true, and return it."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := what()):
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.is_alive(), f"the process ended first, with {process.exitcode}"
        time.sleep(0.005)
    return found


def command(settings: Any) -> list[str]:
    """The command line that means exactly these settings of a `Config`: as a recipe, so that no other adds its own."""
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    recipe = Path(settings.output_dir) / f"{settings.name}.toml"
    values = {k: [*v] if isinstance(v, tuple) else v for k, v in settings.as_dict().items() if v is not None}
    recipe.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))
    return ["train", "--recipe", str(recipe)]
