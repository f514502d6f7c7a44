"""Adapters for other libraries: one module per library, with an extra of the same name. None is imported by default."""
