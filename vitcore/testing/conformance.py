"""The class that a plugin's author inherits."""

from __future__ import annotations

from typing import ClassVar

from vitcore.errors import VitcoreError
from vitcore.testing.checks import CHECKS
from vitcore.testing.process import Worker


class BackendConformance:
    """The conformance kit as a pytest class: inherit it, name it Test..., and set `backend`.

    Needs no fixture and no conftest. The backend runs in a process of its own; `simulate = True` checks it on the simulator
    of its device, `enabled` names kernels that are left out by default. A check that says nothing of a device (such as two
    ranks without a collective) is skipped with its reason.
    """

    backend: ClassVar[str] = ""
    seed: ClassVar[int] = 0
    simulate: ClassVar[bool] = False
    enabled: ClassVar[tuple[str, ...]] = ()
    _worker: ClassVar[Worker | None] = None

    @classmethod
    def teardown_class(cls) -> None:
        if cls._worker is not None:
            cls._worker.close()
            cls._worker = None

    def hold(self, check: str) -> None:
        """Fail with what was found, or skip with why the check says nothing."""
        import pytest

        cls = type(self)
        if not cls.backend:
            raise VitcoreError(f"{cls.__name__} names no backend; write backend = 'NAME' into it")
        if cls._worker is None:
            cls._worker = Worker(cls.backend, cls.seed, simulate=cls.simulate, enabled=cls.enabled)
        answer = cls._worker.ask(check)
        if answer.outcome == "not applicable":
            pytest.skip(f"{check}: {answer.said}")
        if answer.outcome != "passed":
            pytest.fail(f"{cls.backend}: {check}, {CHECKS[check].claim}: {answer.said}", pytrace=False)

    def test_c01_discovery_and_lowering_import_no_torch(self) -> None:
        self.hold("C1")

    def test_c02_every_shipped_program_lowers(self) -> None:
        self.hold("C2")

    def test_c03_values_are_near_float64(self) -> None:
        self.hold("C3")

    def test_c04_nothing_in_a_region_waits_for_the_host(self) -> None:
        self.hold("C4")

    def test_c05_nothing_is_compiled_after_warm_up(self) -> None:
        self.hold("C5")

    def test_c06_flushes_are_those_of_the_text(self) -> None:
        self.hold("C6")

    def test_c07_accumulation_is_one_large_batch(self) -> None:
        self.hold("C7")

    def test_c08_a_checkpoint_travels(self) -> None:
        self.hold("C8")

    def test_c09_two_runs_end_in_the_same_bits(self) -> None:
        self.hold("C9")

    def test_c10_two_ranks_are_one(self) -> None:
        self.hold("C10")

    def test_c11_what_is_not_supported_is_refused(self) -> None:
        self.hold("C11")

    def test_c12_it_opens_again(self) -> None:
        self.hold("C12")

    def test_c13_ops_keep_their_boundaries(self) -> None:
        self.hold("C13")
