"""From the name that a person gives to weights to a path on this machine. Imports no torch.

A path is itself. A bare name is one of Google's published files, and `org/name` a repository of the Hugging Face hub:
both are looked for in vitcore's cache folder, then through `huggingface_hub` where that package is installed. Nothing is
fetched that was not named.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from vitcore.errors import VitcoreError, nearest
from vitcore.folders import user_cache

GOOGLE = "https://storage.googleapis.com/vit_models"
HUB = "https://huggingface.co"
_FILES = ("model.safetensors", "pytorch_model.bin")
_CONFIGURATIONS = ("config.json", "preprocessor_config.json")
_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".bin")

# Name -> (file below `GOOGLE` without .npz, repository of the hub with the same weights or None). The bare names of the
# six original families are their imagenet21k files; of the AugReg sizes, the files that its authors recommend.
OFFICIAL: dict[str, tuple[str, str | None]] = {
    "ViT-B_16": ("imagenet21k/ViT-B_16", "google/vit-base-patch16-224-in21k"),
    "ViT-B_32": ("imagenet21k/ViT-B_32", "google/vit-base-patch32-224-in21k"),
    "ViT-L_16": ("imagenet21k/ViT-L_16", "google/vit-large-patch16-224-in21k"),
    "ViT-L_32": ("imagenet21k/ViT-L_32", "google/vit-large-patch32-224-in21k"),
    "ViT-H_14": ("imagenet21k/ViT-H_14", "google/vit-huge-patch14-224-in21k"),
    "R50-ViT-B_16": ("imagenet21k/R50+ViT-B_16", "timm/vit_base_r50_s16_224.orig_in21k"),
    "ViT-B_8": ("imagenet21k/ViT-B_8", None),
    "R26-ViT-B_32": ("imagenet21k/R26+ViT-B_32", None),
    "R50-ViT-L_32": ("imagenet21k/R50+ViT-L_32", None),
    "ViT-Ti_16": ("augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", None),
    "ViT-S_16": ("augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", None),
    "ViT-S_32": ("augreg/S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0", None),
    "R-ViT-Ti_16": ("augreg/R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", None),
    "R26-ViT-S_32": ("augreg/R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0", None),
    "ViT-B_16-224": ("imagenet21k+imagenet2012/ViT-B_16-224", "google/vit-base-patch16-224"),
    "ViT-L_16-224": ("imagenet21k+imagenet2012/ViT-L_16-224", "google/vit-large-patch16-224"),
    "imagenet21k+imagenet2012/ViT-B_16": ("imagenet21k+imagenet2012/ViT-B_16", "google/vit-base-patch16-384"),
    "imagenet21k+imagenet2012/ViT-B_32": ("imagenet21k+imagenet2012/ViT-B_32", "google/vit-base-patch32-384"),
    "imagenet21k+imagenet2012/ViT-B_8": ("imagenet21k+imagenet2012/ViT-B_8", None),
    "imagenet21k+imagenet2012/ViT-L_16": ("imagenet21k+imagenet2012/ViT-L_16", "google/vit-large-patch16-384"),
    "imagenet21k+imagenet2012/ViT-L_32": ("imagenet21k+imagenet2012/ViT-L_32", "google/vit-large-patch32-384"),
    "imagenet21k+imagenet2012/R50-ViT-B_16":
        ("imagenet21k+imagenet2012/R50+ViT-B_16", "timm/vit_base_r50_s16_384.orig_in21k_ft_in1k"),
    "sam/ViT-B_16": ("sam/ViT-B_16", "timm/vit_base_patch16_224.sam_in1k"),
    "sam/ViT-B_32": ("sam/ViT-B_32", "timm/vit_base_patch32_224.sam_in1k"),
    "sam/ViT-L_16": ("sam/ViT-L_16", None),
    "sam/ViT-L_32": ("sam/ViT-L_32", None),
    "sam/ViT-S_16": ("sam/ViT-S_16", None),
    "DINOv2-S_14": ("", "timm/vit_small_patch14_dinov2.lvd142m"),
}  # fmt: skip
_DIRECTORIES = ("imagenet21k", "imagenet21k+imagenet2012", "augreg", "sam", "gsam")


def cache_folder() -> Path:
    """Where weights are looked for: `weights` in the user's cache (`vitcore.folders.user_cache`)."""
    return user_cache() / "weights"


def resolve(name: str | Path) -> Path:
    """The path of the weights called `name`; VitcoreError that says what to fetch, and where to put it, when they are
    not on this machine and cannot be fetched."""
    text = str(name)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if isinstance(name, Path) or text.startswith(("/", ".", "~")) or path.suffix in _SUFFIXES or text.count("/") > 1:
        raise VitcoreError(_no_such(path))
    official = OFFICIAL.get(text) or OFFICIAL.get(text.replace("+ViT", "-ViT"))
    if official is None and text.partition("/")[0] in _DIRECTORIES and "/" in text:
        official = text, None
    if official is not None:
        return _official(text, *official)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return _from_hub(text, text, None)
    if not get_close_matches(text, [*OFFICIAL], n=1, cutoff=0.8) and _near(path):
        raise VitcoreError(_no_such(path))
    short = ", ".join(n for n in OFFICIAL if "/" not in n)
    raise VitcoreError(f"{text}: neither a path nor the name of published weights{nearest(text, [*OFFICIAL])}; give a "
                       f"file, a run folder, org/name of the hub, or one of {short}")  # fmt: skip


def _near(path: Path) -> list[str]:
    """Names in the path's folder that are nearly its own."""
    return get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1) if path.parent.is_dir() else []


def _no_such(path: Path) -> str:
    near = _near(path)
    hint = f" (did you mean {str(path.parent / near[0])!r}?)" if near else ""
    return f"{path}: no such file or folder{hint}; give the path of weights, or a name such as ViT-B_16"


def _official(name: str, file: str, hub: str | None) -> Path:
    """One of Google's files in the cache, else the same weights from the hub."""
    cached = [cache_folder() / f"{file}.npz", cache_folder() / f"{file.rpartition('/')[2]}.npz"] if file else []
    # The short place alone would not say which of two files of one name it holds.
    for path in cached[:1] if name.partition("/")[0] in _DIRECTORIES else cached:
        if path.is_file():
            return path
    fetch = f"fetch {GOOGLE}/{file}.npz to {cached[0]}" if file else None
    if hub is None:
        raise VitcoreError(f"{name}: it is not in the cache; {fetch}, or give the path of the file")
    return _from_hub(name, hub, fetch)


def _from_hub(name: str, repository: str, instead: str | None) -> Path:
    """A folder with a repository's weights and configuration: the cache's, else what `huggingface_hub` has or fetches.
    `instead` is another way to the weights that were asked for by `name`."""
    folder = cache_folder() / repository
    if any((folder / f).is_file() for f in _FILES):
        return folder
    by_hand = f"fetch {HUB}/{repository}/resolve/main/model.safetensors and config.json of the same folder to {folder}"
    remedy = f"{instead}, or {by_hand}" if instead else by_hand
    try:
        import huggingface_hub
    except ImportError:
        raise VitcoreError(f"{name}: it is not in the cache, and the package huggingface_hub is not installed; "
                           f"{remedy}, or pip install 'vitcore[hub]'") from None  # fmt: skip
    try:
        return _download(huggingface_hub, repository)
    # Whatever the network, the hub or its client say: the person is told, with what to do instead.
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")
    raise VitcoreError(f"{name}: it is not in the cache, and {repository} cannot be fetched from the hub ({reason}); "
                       f"{remedy}")  # fmt: skip


def _download(hub: ModuleType, repository: str) -> Path:
    """The folder of the hub's own cache with the first file of weights that the repository has, and its configuration."""
    safetensors, pickled = _FILES
    try:
        found = hub.hf_hub_download(repository, safetensors)
    except hub.errors.LocalEntryNotFoundError:  # the hub is out of reach; the other file may be here already
        try:
            found = hub.hf_hub_download(repository, pickled, local_files_only=True)
        except hub.errors.LocalEntryNotFoundError:
            found = None
        if found is None:  # out of reach is the reason that is said, not that the second is not here either
            raise
    except hub.errors.EntryNotFoundError:
        found = hub.hf_hub_download(repository, pickled)
    for configuration in _CONFIGURATIONS:
        if hub.try_to_load_from_cache(repository, configuration) is hub._CACHED_NO_EXIST:
            continue  # the repository is known to have none
        try:
            hub.hf_hub_download(repository, configuration)
        except hub.errors.LocalEntryNotFoundError:
            raise
        except hub.errors.EntryNotFoundError:
            continue
    return Path(found).parent
