"""`vitcore bench compare`: what is slower, what counts otherwise, and what is not to be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from vitcore.bench.bootstrap import median_interval, ratio_of_medians
from vitcore.errors import VitcoreError

NAME = "benchmarks/test_throughput.py::test_training_step[ViT-digits-8px-fp32-batch8]"
OTHER = NAME.replace("batch8", "batch16")
COUNTS = {"host reads": 0, "matrix products": 30}
NOISE = np.random.default_rng(5)


def times(median: float, noise: float = 0.01, rounds: int = 40) -> list[float]:
    """Times with a tail, as a busy machine's have."""
    return [float(median * (1 + noise * abs(x))) for x in NOISE.standard_normal(rounds)]


def a_file(path: Path, benchmarks: dict[str, dict[str, Any]], **machine: Any) -> str:
    """A file as pytest-benchmark writes it; of each benchmark its times, and what belongs to `extra_info`."""
    info = {
        "node": "somewhere",
        "system": "Linux",
        "machine": "x86_64",
        "cpu": {"brand_raw": "one", "count": 2},
        **machine,
    }
    rows = [
        {"fullname": name, "name": name.rpartition("::")[2], "stats": {"data": held.pop("data")},
         "extra_info": {"backend": "cpu", "device": "one", "threads": 2, "counts": COUNTS, **held}}
        for name, held in benchmarks.items()
    ]  # fmt: skip
    path.write_text(json.dumps({"machine_info": info, "benchmarks": rows, "version": "5.0"}))
    return str(path)


def compare(vit: Any, *args: Any) -> Any:
    return vit("bench", "compare", *map(str, args))


def test_a_planted_slowdown_is_found_and_a_small_one_let_through(vit: Any, tmp_path: Path) -> None:
    base = a_file(tmp_path / "base.json", {NAME: {"data": times(0.1)}})
    slow = a_file(tmp_path / "slow.json", {NAME: {"data": times(0.11)}})
    little = a_file(tmp_path / "little.json", {NAME: {"data": times(0.103)}})
    found = compare(vit, base, slow)
    assert found.code == 1 and "slower" in found.out and NAME in found.out and "1.1" in found.out
    assert compare(vit, base, slow, "--threshold", "15").code == 0
    fine = compare(vit, base, little)
    assert fine.code == 0 and "slower" not in fine.out and "2 equal" in fine.out
    # The other way round it is faster, which is no fault.
    back = compare(vit, slow, base)
    assert back.code == 0 and "faster" in back.out


def test_a_slowdown_that_the_noise_hides_is_not_one(vit: Any, tmp_path: Path) -> None:
    base = a_file(tmp_path / "base.json", {NAME: {"data": times(0.1, noise=1.0, rounds=8)}})
    other = a_file(tmp_path / "other.json", {NAME: {"data": times(0.11, noise=1.0, rounds=8)}})
    found = compare(vit, base, other)
    assert found.code == 0 and "same" in found.out


def test_a_changed_count_is_named_and_fails_without_any_slowdown(vit: Any, tmp_path: Path) -> None:
    data = times(0.1)
    base = a_file(tmp_path / "base.json", {NAME: {"data": data}, OTHER: {"data": data}})
    changed = {**COUNTS, "host reads": 1}
    other = a_file(tmp_path / "other.json", {NAME: {"data": data, "counts": changed}, OTHER: {"data": data}})
    found = compare(vit, base, other)
    assert found.code == 1 and f"{NAME}: host reads: 0 -> 1" in found.out
    assert f"{OTHER}: host" not in found.out and "1 of 2 differ" in found.out
    del changed["matrix products"]
    changed["host reads"] = 0
    fewer = a_file(tmp_path / "fewer.json", {NAME: {"data": data, "counts": changed}})
    lost = compare(vit, base, fewer)
    assert lost.code == 1 and "matrix products: 30 -> not counted" in lost.out
    assert f"only in base: {OTHER}" in lost.out


def test_places_that_differ_are_refused_unless_asked_for(vit: Any, tmp_path: Path) -> None:
    data = times(0.1)
    base = a_file(tmp_path / "base.json", {NAME: {"data": data}})
    machine = a_file(tmp_path / "m.json", {NAME: {"data": data}}, cpu={"brand_raw": "two", "count": 2})
    assert "processor of the machine is 'one' in the first and 'two'" in compare(vit, base, machine).refusal
    assert compare(vit, base, machine, "--across-machines").code == 0
    backend = a_file(tmp_path / "b.json", {NAME: {"data": data, "backend": "lazysim"}})
    assert f"backend of {NAME} is 'cpu' in the first and 'lazysim'" in compare(vit, base, backend).refusal
    # Another name of the same machine is no other machine, and another program is what is to be compared.
    same = a_file(tmp_path / "s.json", {NAME: {"data": data, "fingerprint": "b"}}, node="elsewhere")
    before = a_file(tmp_path / "f.json", {NAME: {"data": data, "fingerprint": "a"}})
    found = compare(vit, before, same)
    assert found.code == 0 and "the program was a, is b" in found.out


def test_what_cannot_be_compared_is_refused_in_a_sentence(vit: Any, tmp_path: Path) -> None:
    good = a_file(tmp_path / "good.json", {NAME: {"data": times(0.1)}})
    for text, said in (
        ("{", "cannot be read"),
        ("{}", "no file of pytest-benchmark"),
        ("[]", "no file of pytest-benchmark"),
    ):
        (tmp_path / "bad.json").write_text(text)
        assert said in compare(vit, good, tmp_path / "bad.json").refusal
    bare = a_file(tmp_path / "bare.json", {NAME: {"data": []}})
    assert "--benchmark-save-data" in compare(vit, good, bare).refusal
    strange = a_file(tmp_path / "strange.json", {"x.py::test_x": {"data": times(0.1)}})
    assert "no benchmark in common" in compare(vit, good, strange).refusal
    assert "no file and no saved run" in compare(vit, good, "0007").refusal
    assert "1 file(s) to compare" in compare(vit, good).refusal
    assert "--threshold -1.0 is out of range" in compare(vit, good, good, "--threshold", "-1").refusal
    assert "nothing that bench does (did you mean 'compare'?)" in vit("bench", "compar").refusal


def test_saved_runs_are_found_by_name(vit: Any, tmp_path: Path) -> None:
    folder = tmp_path / ".benchmarks" / "Linux-CPython-3.11-64bit"
    folder.mkdir(parents=True)
    for name in ("0001_base", "0002_next", "0002_again"):
        a_file(folder / f"{name}.json", {NAME: {"data": times(0.1)}})
    assert compare(vit, "0001", "0002_next").code == 0
    assert "'0002' means" in compare(vit, "0001", "0002").refusal
    assert "has: 0001_base, 0002_again, 0002_next" in compare(vit, "0001", "0003").refusal


def test_what_pytest_benchmark_writes_is_read(vit: Any, tmp_path: Path) -> None:
    """Not a file as we think that it is, but one of its own."""
    (tmp_path / "test_own.py").write_text("def test_own(benchmark):\n    benchmark.extra_info['counts'] = {'a': 1}\n"
                                          "    benchmark.pedantic(sum, args=([1],), rounds=20)\n")  # fmt: skip
    for name in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py", f"--benchmark-json={name}.json"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    found = compare(vit, "a.json", "b.json", "--threshold", "99", "--json")
    assert "1 equal" in found.out and "test_own.py::test_own" in found.out
    assert len(json.loads(found.out.splitlines()[-1])["comparisons"][0]["benchmarks"]) == 1


def test_plots_are_drawn_over_batch_or_over_runs(vit: Any, tmp_path: Path) -> None:
    def held(rate: float) -> dict[str, dict[str, Any]]:
        return {
            name: {"data": times(batch / rate), "images_per_second": rate, "batch": batch, "model": "ViT-digits",
                   "img_size": 8, "precision": "fp32"}
            for name, batch in ((NAME, 8), (OTHER, 16))
        }  # fmt: skip

    files = [a_file(tmp_path / f"{i}.json", held(100.0 + i)) for i in range(3)]
    two = compare(vit, *files[:2], "--plot", tmp_path / "two")
    assert two.code == 0 and [p.name for p in (tmp_path / "two").iterdir()] == ["ViT-digits_at_8_px_fp32_cpu.png"]
    three = compare(vit, *files, "--plot", tmp_path / "three")
    drawn = sorted((tmp_path / "three").iterdir())
    assert three.code == 0 and len(drawn) == 2 and all(p.read_bytes()[:4] == b"\x89PNG" for p in drawn)
    assert str(drawn[0]) in three.out
    lonely = a_file(tmp_path / "lonely.json", {NAME: {"data": times(0.1)}})
    assert "--plot finds no series" in compare(vit, lonely, lonely, "--plot", tmp_path / "none").refusal


def test_without_matplotlib_it_says_what_to_install(vit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = a_file(tmp_path / "a.json", {NAME: {"data": times(0.1)}})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'vitcore[plots]'" in compare(vit, file, file, "--plot", tmp_path / "p").refusal


def test_comparing_imports_no_torch(tmp_path: Path) -> None:
    file = a_file(tmp_path / "a.json", {NAME: {"data": times(0.1)}})
    code = f"import sys; from vitcore.cli import main; main(['bench', 'compare', *[{file!r}] * 2]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_intervals_are_scipys() -> None:
    """The percentile bootstrap of an independent implementation, to the noise of their different draws."""
    a, b = np.array(times(1.2, 0.2)), np.array(times(1.0, 0.3))

    def ratio(x: Any, y: Any, axis: int) -> Any:
        return np.median(x, axis=axis) / np.median(y, axis=axis)

    both = scipy.stats.bootstrap((a, b), ratio, vectorized=True, n_resamples=20_000, method="percentile", rng=1)
    ours = ratio_of_medians(list(a), list(b))
    assert ours.median == pytest.approx(np.median(a) / np.median(b))
    assert (ours.low, ours.high) == pytest.approx(tuple(both.confidence_interval), abs=0.01)
    one = scipy.stats.bootstrap((a,), np.median, n_resamples=20_000, method="percentile", rng=1)
    own = median_interval(list(a))
    assert (own.low, own.high) == pytest.approx(tuple(one.confidence_interval), abs=0.01)
    assert own == median_interval(list(a))  # the same draws each time


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(3), 0
    for _ in range(200):
        values = rng.exponential(size=30)
        found = median_interval(values)
        hits += found.low <= np.log(2) <= found.high
    assert 180 <= hits <= 199  # 95 %, and four deviations


def test_nothing_has_no_interval() -> None:
    with pytest.raises(VitcoreError, match="needs one finite time or more"):
        median_interval([])
    with pytest.raises(VitcoreError, match="times above 0"):
        ratio_of_medians([1.0, 0.0], [1.0])
