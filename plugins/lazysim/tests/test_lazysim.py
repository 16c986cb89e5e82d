"""The conformance kit on torch's lazy device."""

from vitcore.testing import BackendConformance


class TestLazysim(BackendConformance):
    backend = "lazysim"
