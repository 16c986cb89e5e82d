"""The conformance kit on the built-in backends that can run here."""

import pytest

from vitcore.plugins import load_plugins
from vitcore.runtime.opening import unavailable
from vitcore.testing import BackendConformance


class TestCpu(BackendConformance):
    backend = "cpu"


@pytest.mark.skipif(unavailable(load_plugins().backend("cuda")) is not None, reason="no GPU is here")
class TestCuda(BackendConformance):
    backend = "cuda"
