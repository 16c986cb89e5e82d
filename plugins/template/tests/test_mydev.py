"""vitcore's conformance kit on mydev: 13 checks, in a process of its own."""

from vitcore.testing import BackendConformance


class TestMydev(BackendConformance):
    backend = "mydev"
