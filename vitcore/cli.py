"""The `vitcore` command: `vitcore train ...` is `python -m vitcore.train ...`, and so on. Imports no torch."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from vitcore.debug import debug_level
from vitcore.errors import VitcoreError, nearest

VERBS = {
    "train": "train a Vision Transformer",
    "evaluate": "evaluate a checkpoint",
    "predict": "print the most probable classes of pictures",
    "attention": "draw over a picture what a model attends to",
    "inspect": "say what a file of weights holds",
    "export": "write a model in the format of another library",
    "recipes": "list the recipes, or show one",
    "backends": "list backends, where each came from and whether it can run here",
    "conformance": "prove that a backend trains correctly",
    "new-backend": "write an installable plugin for a device, to be filled in",
    "data": "sort published archives into folders, decode pictures into a cache",
    "bench": "compare files of benchmarks: times with intervals, counts exactly",
    "lower": "print a recipe's step for any backend, without a device",
    "explain": "say what a run asks of a device before it is paid for: flushes, compilations, copies, memory",
}
# Where a verb's `main` is, if not in the module of its name.
MODULES = {"data": "vitcore.data.verb", "bench": "vitcore.bench.verb"}


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call a command's `main`; errors for people become one line and exit code 2; `VITCORE_DEBUG` adds a traceback."""
    traced = False
    try:
        traced = debug_level() > 0
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, where a reader that has left is no traceback
        return code
    except VitcoreError as e:
        if traced:
            traceback.print_exc()
        print(f"vitcore: error: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("vitcore: interrupted", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to the verb's module."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print("usage: vitcore VERB [flags]; vitcore VERB --help shows its flags\n")
        print("\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()))
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("vitcore"))
        return 0
    verb = argv[0]
    if verb not in VERBS:
        print(f"vitcore: error: {verb!r} is no verb{nearest(verb, [*VERBS])}; see vitcore --help", file=sys.stderr)
        return 2
    module = MODULES.get(verb, f"vitcore.{verb.replace('-', '_')}")
    return run(importlib.import_module(module).main, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
