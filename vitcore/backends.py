"""`python -m vitcore.backends`: the backends, where each came from, whether it can run here and why not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from vitcore.cli import run
from vitcore.errors import VitcoreError
from vitcore.plugins import load_plugins
from vitcore.runtime.opening import unavailable


def main(argv: Sequence[str]) -> int:
    """Print a row a backend, or a JSON array with `--json`; plugins that failed to load are named below."""
    unknown = [a for a in argv if a not in ("--json", "-h", "--help")]
    if unknown:
        raise VitcoreError(f"backends: {unknown[0]!r} is no flag of it; it takes --json")
    if "-h" in argv or "--help" in argv:
        print(f"usage: vitcore backends [--json]\n\n{__doc__}")
        return 0
    found = load_plugins()
    simulators = [s for some in found.ask("vitcore_simulators") for s in some]
    rows: list[dict[str, Any]] = []
    for b in sorted(found.backends.values(), key=lambda b: -b.rank):
        reason = unavailable(b)
        rows.append({"name": b.name, "runs_here": reason is None, "reason": reason, "device": b.device,
                     "lazy": b.lazy, "precisions": list(b.precisions), "collective": b.collective, "about": b.about,
                     "simulators": [s.name for s in simulators if b.name in s.backends],
                     "from": found.package(found.origin[b.name])})  # fmt: skip
    if "--json" in argv:
        print(json.dumps({"backends": rows, "failed": found.failed, "imports_torch": found.imported_torch}, indent=1))
        return 0
    for row in rows:
        print(f"{row['name']:<12} {'runs here' if row['runs_here'] else 'cannot run here'}")
        print(f"             {row['about']}; {', '.join(row['precisions'])}; from {row['from']}")
        if row["reason"]:
            print(f"             {row['reason']}")
        for name in row["simulators"]:
            print(f"             {name} simulates its device: --backend {row['name']} --simulate")
    for line in found.complaints:
        print(f"\n{line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
