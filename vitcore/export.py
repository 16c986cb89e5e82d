"""`python -m vitcore.export`: write a model as safetensors of vitcore, timm or Hugging Face, as Google's npz, or as a
torch.export program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitcore.cli import run
from vitcore.commandline import parse


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is written, as what, and where."""

    checkpoint: str
    """File or folder of weights, checkpoint or run folder of ours, official name or hub id."""
    to: Literal["vitcore", "timm", "huggingface", "npz", "torch"]
    """Format: safetensors of vitcore, a folder that timm or transformers load, Google's npz, a torch.export program."""
    output: str
    """File (vitcore, npz, torch) or folder (timm, huggingface) to write; it must not exist."""
    img_size: int | None = None
    """Side in pixels of the pictures that the written model takes; unset: its own."""
    num_classes: int | None = None
    """Classes of a new, zero head; 0 writes no head; unset keeps the head."""


def main(argv: Sequence[str]) -> int:
    """Load, write, and say what was written."""
    asked = parse(Export, argv, "vitcore export", __doc__ or "")
    # Here and not at the top: --help needs no torch.
    from vitcore.weights.load import load
    from vitcore.weights.write import write

    model = load(asked.checkpoint, asked.img_size, asked.num_classes)
    output = write(model, asked.to, Path(asked.output))
    count = sum(p.numel() for p in model.parameters())
    print(f"wrote {output}: {model.variant.name}, {count:,} parameters, {asked.to}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
