"""The package version, in a module of its own, as the package root and the User-Agent header both use it."""

__version__ = "0.1.0"
