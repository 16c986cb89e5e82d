"""How many cores a process may use: affinity, control groups of both versions, ranks beside it."""

from pathlib import Path

import pytest

from vitcore import control_groups
from vitcore.data.loading import cores
from vitcore.data.loading.cores import usable_cores


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lets this process run on 16 cores."""
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def groups(root: Path, membership: str, **limits: str) -> dict[str, Path]:
    """A process's membership file and a tree of control groups; `__` in a name is a folder, `0` a dot."""
    (root / "cgroup").write_text(membership)
    for name, text in limits.items():
        path = root / "fs" / name.replace("__", "/").replace("0", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"memberships": root / "cgroup", "groups": root / "fs"}


def test_without_limits_it_is_the_affinity(tmp_path: Path) -> None:
    assert usable_cores({}, tmp_path / "none", tmp_path) == 16
    assert usable_cores({}, **groups(tmp_path, "0::/a\n", a__cpu0max="max 100000\n")) == 16


def test_a_quota_of_version_2_counts_in_whole_cores_also_from_a_group_above(tmp_path: Path) -> None:
    limits = {"a__cpu0max": "350000 100000\n", "a__b__cpu0max": "max 100000\n"}
    assert usable_cores({}, **groups(tmp_path, "0::/a/b\n", **limits)) == 3


def test_in_a_container_the_hosts_path_is_missing_and_the_root_counts(tmp_path: Path) -> None:
    assert usable_cores({}, **groups(tmp_path, "0::/docker/1f3\n", cpu0max="200000 100000\n")) == 2


def test_a_quota_of_version_1_counts_and_minus_one_is_none(tmp_path: Path) -> None:
    names = {"cpu__a__cpu0cfs_quota_us": "500000\n", "cpu__a__cpu0cfs_period_us": "100000\n",
             "cpu__cpu0cfs_quota_us": "-1\n", "cpu__cpu0cfs_period_us": "100000\n"}  # fmt: skip
    assert usable_cores({}, **groups(tmp_path, "3:cpuset:/\n2:cpu,cpuacct:/a\n1:name=systemd:/a\n", **names)) == 5


def test_less_than_a_core_is_one(tmp_path: Path) -> None:
    assert usable_cores({}, **groups(tmp_path, "0::/\n", cpu0max="50000 100000\n")) == 1


@pytest.mark.parametrize("name", control_groups.LOCAL_RANKS)
def test_ranks_on_one_machine_share_its_cores(name: str, tmp_path: Path) -> None:
    assert [usable_cores({name: ranks}, tmp_path / "none", tmp_path) for ranks in ("1", "3", "8", "99", "x")] == [
        16, 5, 2, 1, 16,
    ]  # fmt: skip
