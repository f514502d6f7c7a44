"""Benchmarks against the performance budgets and other clients: `python -m tests.benchmarks`."""
