"""vitcore's step beside the loops that people train Vision Transformers with, in turn in one process.

    python -m benchmarks.peers --backend cpu --model ViT-S_16 --img_size 224 --batch 8 --precision bf16

Each peer is a module of its own with a `build` that returns a `Loop`; `PEERS` says what must be installed for it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A library's own way of training, and the packages that it needs."""

    module: str
    packages: tuple[str, ...]
    about: str


PEERS: dict[str, Peer] = {
    "hand": Peer("benchmarks.peers.hand", ("timm",), "timm's model in a plain loop: autocast, a fused optimizer"),
    "timm": Peer("benchmarks.peers.timm_script", ("timm",), "what timm's train.py does in a step, with its own parts"),
    "hf": Peer("benchmarks.peers.hf_trainer", ("transformers", "accelerate"), "transformers' Trainer and its own ViT"),
    "fabric": Peer("benchmarks.peers.fabric", ("timm", "lightning"), "timm's model in Lightning Fabric's loop"),
}
"""By the name that `--peers` takes."""

BOUND: dict[str, Peer] = {
    "tuned": Peer(
        "benchmarks.peers.tuned", ("timm",), "bf16 weights with fp32 masters and the faster attention, by hand"
    ),
}
"""Loops that nobody trains with, which say how fast it could be: run where they are named, and no part of `all`."""
