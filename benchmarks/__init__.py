"""Side-by-side measurements against what a person would use instead: `python -m benchmarks [--only NAME]`."""
