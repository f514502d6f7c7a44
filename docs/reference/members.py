"""An extension of griffe: what the API reference shows of a class."""

from __future__ import annotations

from typing import Any

import griffe


class ShownMembers(griffe.Extension):
    """Hides members that say nothing.

    Members are shown without a docstring, since most fields of replies have none. But
    special methods are not, nor attributes that the docstring of their class describes.
    Signatures and types of attributes are taken from members, so these are only hidden.
    """

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called by griffe for each class that it has read."""
        text = cls.docstring
        described = {
            attribute.name
            for section in (text.parse("google", warnings=False) if text else ())
            if section.kind is griffe.DocstringSectionKind.attributes
            for attribute in section.value
        }
        for name, member in list(cls.members.items()):
            if member.has_docstring:
                continue
            if name == "__init__" or name in described:
                member.public = False
            elif member.is_special:
                cls.del_member(name)
