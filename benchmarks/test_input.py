"""From files to normalised batches on one core, against torchvision's ImageFolder, transforms and DataLoader; and from a
file's bytes to the crop, against the fastest libraries.

python -m pytest benchmarks/test_input.py -s

Each measurement of a pair is one epoch over the same pictures, in one process on one core (`input_pairs`). The ratio of CPU time
is judged, as neighbours on the machine disturb it least; wall time is printed beside it, and every run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from photographs import Corpus, camera, find_photographs, progressive, small

from vitcore.data.formats.cached import main as write_cache

CI = bool(os.environ.get("CI"))
PAIRS = 8 if CI else 30
# What the lower end of the interval must reach: alone on a machine, and in CI, where there are fewer pairs and pictures.
LEAST = {("small", 224): (1.9, 1.6), ("small", 384): (2.5, 2.2), ("large", 224): (1.9, 1.6), ("large", 384): (2.2, 2.0),
         ("camera", 224): (3.5, 2.0), ("camera", 384): (3.5, 2.0), ("progressive", 224): (1.5, 1.2),
         ("cache", 224): (5.0, 4.0)}  # fmt: skip
# Enlarged to 384, a crop of OpenCV's is there first: it takes the colours apart with vectors, for which neither torch nor
# NumPy has code, and its resize needs no copy of the cut. It is no dependency (60 MB) for that.
BESIDE = {("small", 384, "simplejpeg and cv2"): 0.85, ("small", 384, "simplejpeg, scaled, and cv2"): 0.85}
# Where OpenCV starts from a picture that is decoded as small as can be, ours from a better one.
BESIDE |= {("camera", size, "simplejpeg, scaled, and cv2"): 0.95 for size in (224, 384)}
LIBRARIES = ("torchvision.io", "simplejpeg and cv2", "simplejpeg, scaled, and cv2")


class Ratio(NamedTuple):
    """The median of paired ratios and a 95 % interval of it (bootstrap)."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f} .. {self.high:.2f}]"


def ratio(first: list[float], second: list[float]) -> Ratio:
    ratios = np.array(first) / np.array(second)
    drawn = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def compare(name: str, corpus: Corpus, report: Any, **asked: Any) -> Ratio | None:
    """Theirs / ours in CPU time; prints every run. None where a library is not installed."""
    asked = {"root": str(corpus.root), "batch": 32 if len(corpus.files) >= 96 else 4, "pairs": PAIRS, **asked}
    program = Path(__file__).with_name("input_pairs.py")
    done = subprocess.run([sys.executable, program, json.dumps(asked)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    spent = json.loads(done.stdout)
    if spent is None:
        report(f"{name}: not installed, not measured")
        return None
    their, our, count = spent["their cpu"], spent["our cpu"], len(corpus.files)
    found, speeds = ratio(their, our), [count / np.median(spent[f"{who} wall"]) for who in ("their", "our")]
    report(
        f"{name}: {found} in CPU time, {ratio(spent['their wall'], spent['our wall'])} in wall time, {PAIRS} pairs; "
        f"{np.median(their) / count * 1e3:.3f} ms and {np.median(our) / count * 1e3:.3f} ms an image "
        f"({speeds[0]:.0f} and {speeds[1]:.0f} images/s)\n"
        "    ratios of CPU time: " + " ".join(f"{a / b:.2f}" for a, b in zip(their, our))
    )
    return found


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("photographs")
    photographs, source = find_photographs(folder)
    return {
        "small": small(photographs, source, folder / "small", 96, 90, 8.5),
        "large": small(photographs, source, folder / "large", 96, 95, 9.5),
        "camera": camera(photographs, source, folder / "camera", 4 if CI else 10),
        "progressive": progressive(photographs, source, folder / "progressive", 4 if CI else 6),
    }


@pytest.mark.parametrize(
    "name, size",
    [*((name, size) for name in ("small", "large", "camera") for size in (224, 384)), ("progressive", 224)],
)
def test_files_to_batches(name: str, size: int, corpora: dict[str, Corpus], report: Any) -> None:
    corpus = corpora[name]
    report(f"{corpus.what}; simplejpeg {version('simplejpeg')}, torchvision {version('torchvision')}")
    title = f"{name} to {size}, the standard way / ours"
    found = compare(title, corpus, report, size=size, way="folder", ours=str(corpus.root))
    assert found is not None and found.low >= LEAST[name, size][CI]


def test_the_raw_cache_to_batches(corpora: dict[str, Corpus], tmp_path: Path, report: Any) -> None:
    corpus, cache = corpora["small"], str(tmp_path / "cache")
    write_cache(["--dataset", "folder", "--data_path", str(corpus.root), "--output", cache, "--side", "256"])
    title = "small to 224, the standard way / our raw cache"
    found = compare(title, corpus, report, size=224, way="cached", ours=cache)
    assert found is not None and found.low >= LEAST["cache", 224][CI]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("name", ["small"] if CI else ["small", "camera"])
def test_no_library_is_faster_from_bytes_to_the_crop(
    name: str, size: int, library: str, corpora: dict[str, Corpus], report: Any
) -> None:
    found = compare(f"{name} to a crop of {size}, {library} / ours", corpora[name], report, size=size, way=library)
    if found is None:
        pytest.skip(f"{library} is not installed")
    assert found.high >= BESIDE.get((name, size, library), 1.0)  # the whole interval below it is a loss
