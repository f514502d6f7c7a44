"""How tests start other programs."""

from typing import Final

WARNINGS_ARE_ERRORS: Final = (
    *("-W", "error"),
    # Of langchain's dependency, on Python 3.14.
    *("-W", "ignore::DeprecationWarning:langsmith._internal._beta_decorator"),
)
"""Options of Python."""
