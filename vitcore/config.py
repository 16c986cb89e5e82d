"""Everything a run can be told, as one frozen dataclass: its fields are the command line's flags and a recipe's keys.

The names of the original recipe (Model-References 1.6.1, ViT) are kept, with their meaning: `train_batch_size`
is per process and is divided by `gradient_accumulation_steps`; steps are optimizer steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vitcore.data.augment import Augment
from vitcore.errors import VitcoreError, nearest
from vitcore.groups import UNDECAYED, parameter_groups
from vitcore.model.variants import find_variant
from vitcore.step.build import OPTIMIZERS, StepSpec
from vitcore.step.ir import Group


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run's settings. Unset flags take the recipe's value, else the default here."""

    # What is trained, on what
    name: str = "run"
    """Name of the run: its folder under output_dir."""
    dataset: str = "digits"
    """Data set: digits, digits-tune, synthetic, folder, imagenet1K, cifar10, cifar100, idx, webdataset, cached, or hf:NAME."""
    data_path: str | None = None
    """Folder of the data set's files; a data set that lacks some says which and where they go."""
    download: bool = False
    """Fetch the data set's published files into data_path where they are missing (cifar10, cifar100); never done unasked."""
    model_type: str | None = "ViT-digits"
    """Model variant, such as ViT-B_16; with --pretrained_dir or --resume it need not be given: the file says it."""
    pretrained_dir: str | None = None
    """Weights to start from: a file or folder (npz, safetensors, pth, a run), an official name as ViT-B_16, a hub id."""
    position_resampling: Literal["bilinear", "bicubic"] = "bilinear"
    """How the weights' position embedding becomes one of another grid: as the original does, or as timm does."""
    img_size: int = 8
    """Side of the square image in pixels."""
    pool: Literal["token", "gap"] | None = None
    """What the head reads, the class token or the mean of all patches; unset: the variant's or the file's own."""
    representation_size: int | None = None
    """Width of a dense layer and tanh before the head (pre-logits), 0 for none; unset: none, as in fine-tuning."""
    dropout: float | None = None
    """Dropout rate; unset: the model variant's own."""
    drop_path: float = 0.0
    """Rate at which whole residual branches are dropped for a sample, at the last block; linear from 0 at the first."""
    patch_dropout: float = 0.0
    """Share of the patches that are left out of each training image's sequence at random."""
    recipe: str | None = None
    """A shipped recipe's name, or a TOML or Python file."""

    # How it is trained
    train_batch_size: int = 64
    """Images per process and optimizer step, before division by gradient_accumulation_steps."""
    eval_batch_size: int = 64
    """Images per process and evaluation batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    num_steps: int = 1000
    """Optimizer steps."""
    optimizer: Literal["sgdm", "adamw", "lamb", "lion", "muon"] = "sgdm"
    """Optimizer: SGD with momentum, AdamW, LAMB, Lion, or Muon (of the blocks' matrices, AdamW of the rest)."""
    learning_rate: float = 0.03
    """Learning rate after warm-up."""
    weight_decay: float = 0.0
    """Weight decay (coupled in sgdm, decoupled in the others)."""
    decay_norms_and_biases: bool = True
    """Whether weight decay reaches biases, norms, the class token and positions too."""
    no_decay: str | None = None
    """Regular expression of further parameters that weight decay leaves alone, by name."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it; the head has the full rate."""
    freeze: str | None = None
    """Regular expression of the parameters that are not trained, by name; no gradient of them is computed."""
    probe_steps: int = 0
    """Steps in which the head alone is trained first, as a stage of its own; fine-tuning then starts from its result."""
    probe_learning_rate: float | None = None
    """Learning rate of that stage; unset: learning_rate."""
    momentum: float = 0.9
    """Momentum of sgdm and muon."""
    beta1: float = 0.9
    """First moment's decay of adamw, lamb and lion, and of muon's adamw."""
    beta2: float = 0.999
    """Second moment's decay of adamw and lamb and of muon's adamw; of lion, the decay of its momentum."""
    eps: float = 1e-8
    """Epsilon of adamw and lamb, and of muon's adamw."""
    decay_type: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after warm-up: to 0 as a cosine or a line, not at all, or (wsd) in the last cooldown_steps."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    cooldown_steps: int = 0
    """Steps of the linear fall to 0 at the end of decay_type wsd; 0 takes a tenth of num_steps."""
    ema: float = 0.0
    """Decay of an exponential moving average of the parameters, which is then what is evaluated; 0: none."""
    sam_rho: float = 0.0
    """Radius of sharpness-aware minimisation (SAM), which takes two forward and backward passes a micro-batch; 0: plain."""
    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped; 0 switches clipping off."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Training loss: cross-entropy over classes, or binary cross-entropy of each class, summed over classes."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""
    seed: int = 42
    """Seed of parameters, order, augmentation and dropout."""

    # Augmentation
    augment_rotate: float = 0.0
    """Largest rotation of a training image in degrees."""
    augment_scale: tuple[float, float] = (1.0, 1.0)
    """Range of scaling factors of a training image."""
    augment_shear: float = 0.0
    """Largest shear of a training image in degrees."""
    augment_translate: float = 0.0
    """Largest shift of a training image in pixels."""
    augment_gain: float = 0.0
    """Brightness of a training image is multiplied by up to 1 + this."""
    augment_flip: bool = False
    """Flip training images left to right with probability one half."""
    augment_crop: tuple[float, float] | None = None
    """Share of a training image's area that is cut out at random and resized, from least to most; for folders."""
    augment_policy: Literal["none", "randaugment", "three"] = "none"
    """RandAugment, or one of grey, solarised and blurred (3-Augment), of each training image."""
    randaugment_ops: int = 2
    """Transformations that RandAugment chains."""
    randaugment_magnitude: int = 9
    """Strength of RandAugment's transformations, of 30."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation are each multiplied by up to 1 +- this."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0: none."""
    cutmix: float = 0.0
    """Alpha of cutmix's Beta distribution; 0: none. With mixup too, each image takes one of the two, half and half."""
    mix_probability: float = 1.0
    """Share of the training images that are mixed."""
    erase: float = 0.0
    """Probability that a random rectangle of a training image becomes grey."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How images are resized; always antialiased."""
    eval_resize: Literal["squash", "crop"] = "squash"
    """How an evaluation image is fitted: squash stretches all of it, as the original; crop keeps the aspect and the centre."""
    eval_crop_pct: float = 0.875
    """With eval_resize crop: the model's side as a share of the resized image's shorter side."""
    bad_images: Literal["skip", "stop", "replace"] = "stop"
    """What an unreadable training image does: ends the run, counts with weight 0, or is replaced by another, drawn anew."""
    workers: int | Literal["auto"] = "auto"
    """Workers that decode images, 0 for none; auto: as many as this process may use cores, where images need decoding."""
    loader: Literal["auto", "threads", "processes"] = "auto"
    """What the workers are; auto takes threads while they are few, which start at once, and processes beyond."""

    # Where and how it runs
    backend: str = "auto"
    """Backend, or auto for the best that can run here; see `vitcore backends`."""
    precision: Literal["fp32", "tf32", "bf16", "bf16-casts"] = "fp32"
    """Precision of the model's arithmetic, of those that the backend offers; parameters and gradients stay fp32."""
    autocast: bool = False
    """The original's name for --precision bf16."""
    simulate: bool = False
    """Use the installed simulator of the backend's device, for development; everything it takes part in says SIMULATED."""
    remat: Literal["none", "blocks", "auto"] = "none"
    """Activations that the backward computes once more and are not kept: none, the blocks', or these if memory needs it."""
    disable_pass: tuple[str, ...] = ()
    """Passes of the lowering to leave out, by name."""
    disable_kernel: tuple[str, ...] = ()
    """Kernels of the backend to leave out, by name; `all` leaves the reference kernels alone."""
    compile: Literal["no", "yes", "auto"] = "no"
    """Whether the model goes through torch.compile; auto: where the run is long enough to pay for the wait before it."""
    enable_kernel: tuple[str, ...] = ()
    """Kernels of the backend to ask that are left out by default, by name; --explain lists them with the reason."""
    env: tuple[str, ...] = ()
    """NAME=VALUE settings for the device's libraries, put into the environment before they are imported."""
    threads: int = 0
    """Threads of torch's operators on the host; 0 leaves torch's own choice."""

    # What it writes and says
    output_dir: str = "output"
    """Folder that holds the run folders."""
    resume: str | None = None
    """Checkpoint, or run folder whose newest checkpoint is taken, to go on from."""
    eval_every: int = 100
    """Optimizer steps between evaluations; 0: only at the end."""
    save_every: int = 0
    """Optimizer steps between checkpoints; 0: at every evaluation."""
    log_every: int = 50
    """Optimizer steps between reads of loss and metrics."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept, besides the best."""
    profile: bool = False
    """Profile some steps: a table by op of the program is printed, and written beside a trace into the run folder."""
    profile_steps: tuple[int, int] = (5, 9)
    """First and last step that --profile looks at, counted from 1 where the run begins."""
    json: bool = False
    """Print one JSON object as the last line of standard output."""
    print_step: Literal["text", "lowered", "python"] | None = None
    """Print the step's neutral text, its lowered text or the generated Python, and leave."""
    explain: bool = False
    """Print the passes, and every kernel that refused an op, and leave."""
    dry_run: bool = False
    """Print the resolved configuration and leave."""

    # Accepted for the original's sake
    internal_perf_measure: bool = False
    """Start from random weights where the recipe asks for pretrained ones."""
    cache_dataset: bool = False
    """No effect: the operating system caches files."""
    loss_scale: float = 0.0
    """No effect: bf16 and fp32 need no loss scaling."""
    local_rank: int = -1
    """No effect: ranks come from the launcher's environment."""

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or set(self.name) & set("/\\\0"):
            raise VitcoreError(
                f"--name {self.name!r} is no name for a folder under --output_dir; give one without slashes, as run1"
            )
        if self.model_type is None and self.pretrained_dir is None and self.resume is None:
            raise VitcoreError("no model: give --model_type, such as ViT-B_16, or --pretrained_dir, whose file says it")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise VitcoreError(f"--{f.name} {value} is no finite number; give one")
        for name in ("train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "num_steps", "log_every",
                     "img_size", "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) < 1:
                raise VitcoreError(f"--{name} {getattr(self, name)} is out of range: it must be at least 1")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_every", "save_every",
                     "workers", "seed", "augment_rotate", "augment_shear", "augment_translate", "augment_gain", "threads",
                     "representation_size", "cooldown_steps", "probe_steps", "probe_learning_rate", "sam_rho", "mixup",
                     "cutmix", "color_jitter", "randaugment_ops", "randaugment_magnitude"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, str) and not (value or 0) >= 0:
                raise VitcoreError(f"--{name} {getattr(self, name)} is out of range: it must not be negative")
        for name in ("label_smoothing", "momentum", "beta1", "beta2", "ema", "drop_path", "patch_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise VitcoreError(f"--{name} {getattr(self, name)} is out of range: it must be in [0, 1)")
        for name in ("erase", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise VitcoreError(f"--{name} {getattr(self, name)} is out of range: it is a probability, from 0 to 1")
        for name in ("layer_decay", "eval_crop_pct"):
            if not 0 < getattr(self, name) <= 1:
                raise VitcoreError(f"--{name} {getattr(self, name)} is out of range: it must be above 0 and at most 1")
        for name in ("no_decay", "freeze"):
            _check_pattern(name, getattr(self, name))
        if not self.eps > 0:
            raise VitcoreError(f"--eps {self.eps} is out of range: it must be above 0")
        if self.seed >= 1 << 63:
            raise VitcoreError(f"--seed {self.seed} is out of range: it must be below 2^63")
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise VitcoreError(
                f"--train_batch_size {self.train_batch_size} is not divisible by --gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}: each step is that many equal micro-batches; change one of them"
            )
        for pair in self.env:
            if not pair.partition("=")[1] or not pair.partition("=")[0]:
                raise VitcoreError(f"--env {pair!r} is no setting; write NAME=VALUE")
        if self.simulate and self.backend == "auto":
            raise VitcoreError("--simulate needs the name of a backend whose device is to be simulated; give --backend")
        if not 0 < self.augment_scale[0] <= self.augment_scale[1]:
            raise VitcoreError(f"--augment_scale {self.augment_scale} is no range: give two factors, 0 < low <= high")

    def by_file(self, given: Collection[str]) -> Config:
        """The configuration with the model's type left to the file, where `given` names the file and not the type: the
        recipe's type is then another file's."""
        files = [n for n in ("pretrained_dir", "resume") if getattr(self, n) is not None and n in given]
        return replace(self, model_type=None) if files and "model_type" not in given else self

    @property
    def micro_batch(self) -> int:
        """Images per process and micro-batch."""
        return self.train_batch_size // self.gradient_accumulation_steps

    @property
    def groups(self) -> tuple[Group, ...]:
        """The parameter groups; VitcoreError where they need the model's depth and only a file knows it."""
        depth = 0
        if self.layer_decay != 1:
            if self.model_type is None:
                raise VitcoreError(f"--layer_decay {self.layer_decay} needs the number of the model's blocks before its file is "
                                   "read; give --model_type, such as ViT-B_16")  # fmt: skip
            depth = find_variant(self.model_type).depth
        undecayed = [*([] if self.decay_norms_and_biases else [UNDECAYED]), *([self.no_decay] if self.no_decay else [])]
        return parameter_groups(
            self.optimizer, freeze=self.freeze, layer_decay=self.layer_decay, depth=depth,
            undecayed="|".join(undecayed) if self.weight_decay and undecayed else None,
        )  # fmt: skip

    @property
    def spec(self) -> StepSpec:
        """What the step's programs depend on."""
        return StepSpec(
            name=self.recipe_name, optimizer=self.optimizer, accumulation=self.gradient_accumulation_steps,
            clip=self.max_grad_norm > 0, label_smoothing=self.label_smoothing, loss=self.loss,
            patch_dropout=self.patch_dropout, augment=self.augmentation.on_device, ema=self.ema > 0, sam=self.sam_rho > 0,
            groups=self.groups,
        )  # fmt: skip

    @property
    def augmentation(self) -> Augment:
        """What training does to an image."""
        return Augment(
            rotate=self.augment_rotate, scale=self.augment_scale, shear=self.augment_shear,
            translate=self.augment_translate, gain=self.augment_gain, flip=self.augment_flip, crop=self.augment_crop,
            policy=self.augment_policy, ops=self.randaugment_ops, magnitude=self.randaugment_magnitude,
            jitter=self.color_jitter, mixup=self.mixup, cutmix=self.cutmix, mix_probability=self.mix_probability,
            erase=self.erase, patch_dropout=self.patch_dropout,
        )  # fmt: skip

    @property
    def recipe_name(self) -> str:
        """The recipe's name without folder and ending, as the module is called."""
        stem = (self.recipe or "run").replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return "".join(c if c.isalnum() or c in "_-" else "_" for c in stem)

    def hypers(self, step: int) -> dict[str, float]:
        """The scalars of `%hyper` at optimizer step `step`, counted from 0, but for the learning rate.

        An average of the parameters keeps less of itself at first, min(ema, (1 + step) / (10 + step)), so that it does not
        remember the first parameters for long (TensorFlow's ExponentialMovingAverage).
        """
        values = {n: float(getattr(self, n)) for n in OPTIMIZERS[self.optimizer] if n != "lr"}
        values |= {"max_norm": self.max_grad_norm} if self.max_grad_norm > 0 else {}
        values |= {"ema_keep": min(self.ema, (1 + step) / (10 + step))} if self.ema > 0 else {}
        return {**values, "rho": self.sam_rho} if self.sam_rho > 0 else values

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def _check_pattern(name: str, pattern: str | None) -> None:
    try:
        re.compile(f"(?:{pattern or ''})")  # as a part of others, as the groups' patterns take it
    except re.error as e:
        raise VitcoreError(f"--{name} {pattern!r} is no regular expression ({e}); correct it, as in '^head'") from e


def check_keys(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values if every key is a setting and every value of its type; a VitcoreError that names the file and the
    nearest setting otherwise. Whole numbers and lists become the floats and tuples that a setting asks for."""
    hints, checked = get_type_hints(Config), {}
    for key, value in values.items():
        if key not in hints:
            raise VitcoreError(
                f"{where}: {key!r} is no setting of a run{nearest(key, [*hints])}; see vitcore train --help"
            )
        checked[key] = _typed(value, hints[key])
        if checked[key] is _WRONG:
            raise VitcoreError(f"{where}: {key} = {value!r} is not of type {_type_name(hints[key])}; correct the value")
    return checked


_WRONG = object()


def _typed(value: Any, hint: Any) -> Any:
    """The value as the type holds it, or `_WRONG`."""
    if get_origin(hint) in (UnionType, Union):  # which of both depends on the members
        return next((v for v in (_typed(value, kind) for kind in get_args(hint)) if v is not _WRONG), _WRONG)
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else _WRONG
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if Ellipsis in kinds else kinds
        parts = tuple(_typed(v, kind) for v, kind in zip(value, kinds))
        return parts if len(parts) == len(value) == len(kinds) and _WRONG not in parts else _WRONG
    if hint is float and type(value) is int:
        return float(value)
    return value if type(value) is hint else _WRONG


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
