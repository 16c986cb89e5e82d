"""The whole conformance kit, on the simulated card in both modes."""

from vitcore.testing import BackendConformance


class TestHpuLazy(BackendConformance):
    backend = "hpu-lazy"
    simulate = True


class TestHpuEager(BackendConformance):
    backend = "hpu-eager"
    simulate = True
