"""Studies, their results, and benchmarks."""
