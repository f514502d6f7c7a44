"""The version, where both the package root and the user agent can read it."""

__version__ = "0.1.0"
