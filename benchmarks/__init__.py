"""Speed as paired ratios, and what a step does as counts. `pytest benchmarks`, `python -m benchmarks.peers`,
`python -m benchmarks.growth`; docs/benchmarks.md says how to use them."""
