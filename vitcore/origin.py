"""Where a run's model comes from: a name of the zoo, a file of weights, or the checkpoint that the run goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitcore.checkpoint import find, read_record
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.model.variants import Variant, find_variant
from vitcore.weights import own
from vitcore.weights.examine import Weights, check_structure, examine
from vitcore.weights.resolve import resolve


@dataclass(frozen=True)
class Origin:
    """The model's variant, and the weights that fill it; None where they are drawn, or in a checkpoint.

    `keep_head` takes the weights' own head too, as evaluating them needs; training starts from a zero one.
    """

    variant: Variant
    weights: Weights | None = None
    keep_head: bool = False


def find_origin(config: Config) -> Origin:
    """What a configuration trains. A file's architecture is the file's: what is stated beside it must agree, and both are
    shown where it does not (VitcoreError). So is its arithmetic, whatever library it comes from."""
    if config.resume is not None:
        path = find(Path(config.resume))
        variant = own.found(str(path), read_record(path)["facts"].get(own.KEY)).variant
        _agree(config, f"checkpoint {path}", variant, variant.representation)
        return Origin(_with_rates(config, variant))
    if config.pretrained_dir is None:
        assert config.model_type is not None  # Config sees to it
        asked = {"pool": config.pool, "representation": config.representation_size}
        variant = find_variant(config.model_type).replace(**{k: v for k, v in asked.items() if v is not None})
        return Origin(_with_rates(config, variant))
    try:
        weights = examine(resolve(config.pretrained_dir))
        _agree(config, str(weights.path), weights.variant, weights.variant.representation or None)
    except VitcoreError as e:
        raise VitcoreError(f"--pretrained_dir {config.pretrained_dir}: {e}") from e
    # As the original's fine-tuning: without pre-logits, unless they are asked for.
    variant = weights.variant.replace(representation=config.representation_size or 0)
    return Origin(_with_rates(config, variant), weights)


def after_probe(config: Config) -> Origin:
    """The model of a stage that trained the head alone, whose checkpoint is `pretrained_dir`, with that head."""
    assert config.pretrained_dir is not None
    weights = examine(Path(config.pretrained_dir))
    return Origin(_with_rates(config, weights.variant), weights, keep_head=True)


def _agree(config: Config, where: str, held: Variant, representation: int | None) -> None:
    """Refuse a model type, pooling or representation that is stated and not the file's; None is any representation."""
    if config.model_type is not None:
        asked = find_variant(config.model_type).replace(pool=config.pool or held.pool)
        check_structure(where, held, asked, f"--model_type {config.model_type}")
    elif config.pool not in (None, held.pool):
        raise VitcoreError(
            f"{where} holds a model with pool {held.pool!r}, --pool is {config.pool!r}; leave the flag out"
        )
    if representation is not None and config.representation_size not in (None, 0, representation):
        raise VitcoreError(f"{where} holds a representation of width {representation}, --representation_size is "
                           f"{config.representation_size}; give {representation}, or 0 for none")  # fmt: skip


def _with_rates(config: Config, variant: Variant) -> Variant:
    variant = variant.replace(drop_path=config.drop_path)
    return variant if config.dropout is None else variant.replace(dropout=config.dropout)
