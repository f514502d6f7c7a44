"""The budgets of this library, measured beside its peers: `python -m tests.benchmarks`."""
