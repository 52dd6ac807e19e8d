"""Benchmarks: `python -m benchmarks` pairs audit-stream with its peers and prints one table."""
