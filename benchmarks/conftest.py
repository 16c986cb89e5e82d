"""What the benchmarks share: what is measured, by options; interleaved pairs and their median ratio with an interval."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.workload import Workload
from vitcore.model.variants import find_variant
from vitcore.plugins import load_plugins
from vitcore.runtime.opening import choose_backend

sys.path.insert(0, str(Path(__file__).parent))

# Small enough for every machine; large models are asked for.
MODELS, PRECISIONS, BATCHES, SIDE, ROUNDS = "ViT-digits,ViT-Ti_16", "fp32,bf16", "8", 64, 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which backend, and which training steps are timed."""
    group = parser.getgroup("vitcore's benchmarks")
    group.addoption(
        "--backend", default="auto", help="backend of the throughput suite; auto: the best that can run here"
    )
    group.addoption("--models", default=MODELS, help="variants, by comma")
    group.addoption("--precisions", default=PRECISIONS, help="by comma; those that the backend has not are left out")
    group.addoption("--batches", default=BATCHES, help="pictures a step, by comma")
    group.addoption("--img_size", type=int, default=SIDE, help="pixels a side; ViT-digits has its own 8")
    group.addoption("--rounds", type=int, default=ROUNDS, help="steps that are timed")
    group.addoption("--threads", type=int, default=0, help="of torch's operators; 0: its own choice")
    group.addoption(
        "--gemm", type=int, default=0, help="side of the matrix product that rates are shares of; 0: by the device"
    )
    group.addoption(
        "--update-counts", action="store_true", help="rewrite benchmarks/counts.json from what is counted now"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One throughput benchmark for each model, precision and batch that is asked for."""
    if "job" in metafunc.fixturenames:
        jobs = throughput_jobs(metafunc.config.getoption)
        names = [f"{j.model}-{j.img_size}px-{j.precision}-batch{j.batch}" for j in jobs]
        metafunc.parametrize("job", jobs, ids=names)


def throughput_jobs(option: Callable[[str], Any]) -> list[Workload]:
    """The jobs that the options ask for; VitcoreError for a model, a backend or a batch that there is not."""
    plugins = load_plugins()
    backend, _ = choose_backend(plugins, option("--backend"))
    jobs = []
    for model in option("--models").split(","):
        variant = find_variant(model)
        side = variant.img_size if variant.channels == 1 else option("--img_size")
        for precision in option("--precisions").split(","):
            if precision not in backend.precisions and option("--precisions") == PRECISIONS:
                continue  # not asked for by name
            for batch in option("--batches").split(","):
                jobs.append(Workload(model, side, int(batch), precision))
    return jobs


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """`--threads`, where it is given."""
    import torch

    before, asked = torch.get_num_threads(), request.config.getoption("--threads")
    if asked:
        torch.set_num_threads(asked)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and its 95 % interval (order statistics, no assumption about the noise)."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f} .. {self.high:.3f}], {self.pairs} pairs"


def measure(first: Callable[[], object], second: Callable[[], object], *, pairs: int, inner: int = 1) -> Ratio:
    """time(first) / time(second), pair by pair, the order swapped from pair to pair; above 1 the second is faster."""
    first(), second()
    ratios = []
    for i in range(pairs):
        order = (first, second) if i % 2 == 0 else (second, first)
        times = {}
        for run in order:
            start = time.perf_counter()
            for _ in range(inner):
                run()
            times[run] = time.perf_counter() - start
        ratios.append(times[first] / times[second])
    ratios.sort()
    # The interval whose ends are the order statistics around n/2 +- 1.96 sqrt(n)/2.
    reach = 0.98 * pairs**0.5
    low, high = max(0, int(pairs / 2 - reach)), min(pairs - 1, int(pairs / 2 + reach))
    return Ratio(statistics.median(ratios), ratios[low], ratios[high], pairs)


@pytest.fixture
def paired() -> Callable[..., Ratio]:
    """`paired(first, second, pairs=..., inner=...)`: the two in turn in this process."""
    return measure


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line that is seen without -s."""

    def line(text: str) -> None:
        with capsys.disabled():
            print("\n  " + text)

    return line
