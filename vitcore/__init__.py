"""vitcore trains Vision Transformers on any accelerator: a training step is a small program, a backend its compiler.

    import vitcore
    result = vitcore.recipe("digits").train(num_steps=100)
    model = vitcore.load("ViT-B_16.npz", img_size=384, num_classes=10)
    print(vitcore.recipe("digits").lower("NAME OF A BACKEND"))

Importing it imports no torch, so that a backend's environment can still be set.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from vitcore.errors import VitcoreError

if TYPE_CHECKING:
    from pathlib import Path

    from vitcore.config import Config
    from vitcore.model.vit import VisionTransformer
    from vitcore.training import Result

__all__ = ["Recipe", "VitcoreError", "load", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """A recipe by name or file; each verb takes settings that replace the recipe's. The setting `dataset` may be a data set
    of arrays as well, `vitcore.data.formats.arrays.ArrayData`."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self, **settings: Any) -> Config:
        """The resolved configuration."""
        from vitcore.config import Config, check_keys
        from vitcore.recipes import load_recipe

        given = {**self.settings, **settings}
        if hasattr(given.get("dataset"), "open"):
            # A data set that the program has made is from here on known by its name.
            from vitcore.data.datasets import offer

            given["dataset"] = offer(given["dataset"])
        changed = check_keys(given, f"recipe {self.name}")
        values = {**load_recipe(self.name), "recipe": self.name, **changed}
        config = Config(**values).by_file(changed)
        return config if "name" in values else replace(config, name=config.recipe_name)

    def train(self, **settings: Any) -> Result:
        """Train to the end; what `python -m vitcore.train` does."""
        from vitcore import stages
        from vitcore.commandline import say

        return stages.run(self.config(**settings), say=say)

    def lower(self, backend: str, **settings: Any) -> str:
        """The lowered programs for a backend, as text, on any machine and without torch."""
        from vitcore.plan import make_plan

        return make_plan(self.config(**settings, backend=backend), to_run=False).show("lowered")

    def evaluate(self, checkpoint: str, **settings: Any) -> dict[str, float]:
        """Accuracy, right answers, images and loss of a checkpoint of this recipe."""
        from pathlib import Path

        from vitcore.plan import make_plan
        from vitcore.runtime.opening import set_environment

        plan = make_plan(self.config(**settings, resume=checkpoint))
        set_environment(plan.backend, plan.plugins)
        from vitcore.origin import find_origin
        from vitcore.session import Session

        with Session(plan, find_origin(plan.config)) as session:
            state, _ = session.load(Path(checkpoint))
            state, _ = session.executable.log(state)
            return session.evaluate(state)[1]


def recipe(name: str, **settings: Any) -> Recipe:
    """A shipped recipe, a plugin's, or a TOML or Python file, with settings that replace its own."""
    return Recipe(name, settings)


def load(
    path: str | Path,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    *,
    model_type: str | None = None,
    positions: Literal["bilinear", "bicubic"] = "bilinear",
    **overrides: Any,
) -> VisionTransformer:
    """The model of a file of weights, in evaluation mode: `model(x)`, x (B, 3, H, W) in [-1, 1], gives logits (B, K).

    `path` is Google's `.npz`, a state dict of timm or Hugging Face (`.safetensors`, `.pth`; the configuration beside
    `model.safetensors` is read), a file, checkpoint or run folder of ours, an official name such as "ViT-B_16" in the
    cache, or a hub id. The architecture is read from the names and shapes of the arrays.

    img_size: pixels, (H, W) or one side; unset, the file's own. Another grid resamples the position embedding:
        `positions` "bilinear" as the original's fine-tuning does, "bicubic" as timm does.
    num_classes: unset, the file's own head, and its pre-logits, are kept; a number makes a zero head of so many
        classes and drops pre-logits, as the original's fine-tuning does; 0 is no head: (B, D) comes out.
    model_type: a variant that the file must be of.
    overrides: fields of the variant, such as `gelu="tanh"`, `layer_norm_eps=1e-6`, `heads=6`. Unset, a file computes
        what the library that it comes from computes.
    Raises VitcoreError, which names the array, for a file that is damaged or of another kind.
    """
    from vitcore.weights.load import load

    return load(path, img_size, num_classes, model_type=model_type, positions=positions, **overrides)
