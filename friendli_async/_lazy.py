"""Names for annotations, of what is not imported at run time: ``LazyModule`` and ``TypeForm``.

FastAPI, pydantic, beartype and containers for dependency injection evaluate annotations (by ``typing.get_type_hints``
or ``inspect.signature(..., eval_str=True)``), with the names that the module has at run time. A name that is imported
for type checkers only does not exist there.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import TypeForm  # type checkers know it: nothing to install
else:
    TypeForm = type[TypeVar("T")] | Any  # any object stands for a type, such as `list[int]`

__all__ = ["LazyModule", "TypeForm"]


class LazyModule(ModuleType):
    """Stands for a module in annotations, and imports it when one of them is evaluated.

    Type checkers see the import itself, which stands under ``TYPE_CHECKING``.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked of every value of a module, for example by doctest
            raise AttributeError(f"module {self.__name__!r} is not imported for {name!r}")
        return getattr(import_module(self.__name__), name)
