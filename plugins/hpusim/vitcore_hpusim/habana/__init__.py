"""A stand-in for `habana_frameworks.torch`, built in `sys.modules`: the names, arguments and flushes of the vendor's published
source, every body our own."""
