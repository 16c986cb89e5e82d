"""From names to paths: the machine's own files, the cache, the hub's client, and what to do without any."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from vitcore.errors import VitcoreError
from vitcore.model.variants import VARIANTS
from vitcore.weights.resolve import OFFICIAL, cache_folder, resolve


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and no client of the hub, whatever is installed."""
    monkeypatch.setenv("VITCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_a_path_is_itself_even_under_a_published_name(tmp_path: Path) -> None:
    put(tmp_path / "ViT-B_16")
    assert resolve("ViT-B_16") == Path("ViT-B_16")
    assert resolve(tmp_path) == tmp_path


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "weights"
    monkeypatch.delenv("VITCORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vitcore" / "weights"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ViT-B_16", "imagenet21k/ViT-B_16.npz"),
        ("ViT-B_16", "ViT-B_16.npz"),
        ("R50-ViT-B_16", "imagenet21k/R50+ViT-B_16.npz"),
        ("R50+ViT-B_16", "imagenet21k/R50+ViT-B_16.npz"),
        ("ViT-B_16-224", "imagenet21k+imagenet2012/ViT-B_16-224.npz"),
        ("sam/ViT-B_16", "sam/ViT-B_16.npz"),
        ("imagenet21k+imagenet2012/R50+ViT-B_16", "imagenet21k+imagenet2012/R50+ViT-B_16.npz"),
        ("augreg/B_16-i1k-300ep", "augreg/B_16-i1k-300ep.npz"),
    ],
)
def test_a_published_name_is_found_in_the_cache(name: str, file: str) -> None:
    path = put(cache_folder() / file)
    assert resolve(name) == path


def test_a_short_place_in_the_cache_is_not_taken_for_a_file_of_another_folder() -> None:
    put(cache_folder() / "ViT-B_16.npz")
    with pytest.raises(VitcoreError, match=r"sam/ViT-B_16\.npz to "):
        resolve("sam/ViT-B_16")


def test_without_the_file_it_says_what_to_fetch_from_where_to_where(tmp_path: Path) -> None:
    with pytest.raises(VitcoreError) as refused:
        resolve("ViT-B_16")
    said = str(refused.value)
    assert (
        f"https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz to {tmp_path}/cache/weights/imagenet21k"
        in said
    )
    assert "https://huggingface.co/google/vit-base-patch16-224-in21k/resolve/main/model.safetensors" in said
    assert "pip install 'vitcore[hub]'" in said and "\n" not in said


def test_every_variant_of_the_zoo_has_published_weights() -> None:
    assert {name for name in VARIANTS if name not in OFFICIAL} == {"ViT-digits"}
    for name in OFFICIAL:
        with pytest.raises(VitcoreError, match="not in the cache"):
            resolve(name)


class Hub(ModuleType):
    """A stand-in for the hub's client: some files, and an error for the rest."""

    class errors(SimpleNamespace):
        class EntryNotFoundError(Exception):
            pass

        class LocalEntryNotFoundError(EntryNotFoundError):
            pass

    _CACHED_NO_EXIST = object()

    def __init__(self, folder: Path, files: tuple[str, ...], otherwise: Exception | None = None) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.files, self.otherwise, self.asked = folder, files, otherwise, []

    def try_to_load_from_cache(self, repository: str, file: str) -> None:
        return None

    def hf_hub_download(self, repository: str, file: str) -> str:
        self.asked.append((repository, file))
        if file in self.files:
            return str(put(self.folder / file))
        raise self.otherwise or self.errors.EntryNotFoundError(f"no {file}")


def test_the_hubs_client_is_asked_for_the_weights_and_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub: Any = Hub(tmp_path / "snapshot", ("model.safetensors", "config.json"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert resolve("google/vit-base-patch16-224") == tmp_path / "snapshot"
    assert [file for _, file in hub.asked] == ["model.safetensors", "config.json", "preprocessor_config.json"]
    hub.files = ("pytorch_model.bin",)
    assert resolve("ViT-B_16") == tmp_path / "snapshot"
    assert hub.asked[-1] == ("google/vit-base-patch16-224-in21k", "preprocessor_config.json")


def test_the_cache_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: Any = Hub(tmp_path, ())
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    put(cache_folder() / "google/vit-base-patch16-224" / "model.safetensors")
    assert resolve("google/vit-base-patch16-224") == cache_folder() / "google/vit-base-patch16-224"
    assert not hub.asked


def test_offline_it_says_the_reason_and_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: Any = Hub(tmp_path, (), OSError("offline mode is enabled\nmore"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(
        VitcoreError,
        match=r"a/b cannot be fetched from the hub \(offline mode is enabled\); fetch https://huggingface.co/a/b",
    ):
        resolve("a/b")
    with pytest.raises(
        VitcoreError, match=r"^ViT-B_16: it is not in the cache, and google/vit-base-patch16-224-in21k can"
    ):
        resolve("ViT-B_16")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_real_client_offline_gives_what_its_own_cache_holds(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", huggingface_hub)
    for name, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    with pytest.raises(VitcoreError, match="it is not in the cache, and a/b cannot be fetched from the hub"):
        resolve("a/b")
    repository, commit = tmp_path / "hub" / "models--a--b", "0" * 40
    put(repository / "refs" / "main").write_text(commit)
    weights = put(repository / "snapshots" / commit / file)
    with pytest.raises(VitcoreError, match="cannot be fetched"):
        resolve("a/b")  # without its configuration
    put(repository / "snapshots" / commit / "config.json")
    put(repository / ".no_exist" / commit / "preprocessor_config.json")
    assert resolve("a/b") == weights.parent


def test_a_failing_configuration_is_no_repository_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: Any = Hub(tmp_path, ("model.safetensors",), OSError("the line broke"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(VitcoreError, match="the line broke"):
        resolve("a/b")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B16", r"neither a path nor the name of published weights \(did you mean 'ViT-B_16'\?\)"),
        ("./ViT-B_16", "no such file or folder"),
        ("modell.npz", r"no such file or folder \(did you mean 'model.npz'\?\)"),
        ("a/b/c", "no such file or folder"),
        ("~/nothing.pth", "no such file or folder"),
    ],
)
def test_a_mistyped_name_is_refused_with_the_nearest(name: str, words: str, tmp_path: Path) -> None:
    put(tmp_path / "model.npz")
    with pytest.raises(VitcoreError, match=words):
        resolve(name)
