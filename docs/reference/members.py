"""An extension of griffe: what the API reference shows of a class."""

from __future__ import annotations

from typing import Any

import griffe


class ShownMembers(griffe.Extension):
    """Removes members that say nothing.

    Members are shown without a docstring, since most fields of replies have none. But
    special methods are not, nor attributes that the docstring of their class describes.
    """

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called by griffe for each class that it has read."""
        described = {
            attribute.name
            for section in (cls.docstring.parse("google") if cls.docstring else ())
            if section.kind is griffe.DocstringSectionKind.attributes
            for attribute in section.value
        }
        for name, member in list(cls.members.items()):
            if not member.has_docstring and (member.is_special or name in described):
                cls.del_member(name)
