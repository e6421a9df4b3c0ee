"""Tables of named things that fill themselves: what stands in a family's folder is found without
being listed anywhere.

A member comes from one of three places, and registers itself under a name when its module is
imported:

* a file in the family's folder in this package;
* an installed package, through the entry-point group of the family (``safeswitch.methods``, ...);
* a file of the user's, named as ``path/to/file.py:Name``.

Knows nothing of what is registered.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from safeswitch.core.errors import SettingError

_IN_FILE = re.compile(r"[^,+]+\.py:\w+")
T = TypeVar("T")
M = TypeVar("M")


class Registry(Generic[T]):
    """A table of named things of one family.

    Args:
        family: What the members are, for messages ("prober", "method").
        package: Package whose modules hold the members; they are imported when the table is first
            looked into. Empty for none.
        group: Entry-point group through which installed packages add members; empty for none.
    """

    def __init__(self, family: str, package: str = "", group: str = "") -> None:
        self.family = family
        self.package = package
        self.group = group
        self._members: dict[str, T] = {}
        self._filled = False

    def add(self, name: str) -> Callable[[M], M]:
        """Decorator that registers its target under ``name``; a name is taken once."""

        def register(member: M) -> M:
            if name in self._members:
                raise SettingError(f"{self.family} {name!r} is registered twice")
            self._members[name] = member  # type: ignore[assignment]
            return member

        return register

    def from_file(self, text: str) -> str:
        """The name of a member; ``file.py:Name`` is imported first, so that the rest of the program
        knows it by name.

        Args:
            text: A registered name, or a Python file and the name that it gives the member.

        Raises:
            SettingError: no such file, one that cannot be imported, or one without that name.
        """
        path, colon, name = text.rpartition(":")
        if not colon or not path.endswith(".py"):
            return text
        module = _module_of(Path(path), self.family)
        member: Any = getattr(module, name, None)
        if member is None:
            raise SettingError(f"{self.family} {text!r}: {path} defines no {name}")
        for known, registered in self._members.items():
            if registered is member:
                return known
        self.add(name)(member)
        return name

    def from_files(self, text: str) -> str:
        """``text`` with every ``file.py:Name`` in it replaced by the name under which that member
        is known now.

        Args:
            text: As it was typed: one name, or several joined by ``,`` or ``+``.
        """
        return _IN_FILE.sub(lambda found: self.from_file(found.group().strip()), text)

    def _fill(self) -> None:
        """Import every module of the package and every entry point of the group, once."""
        if self._filled:
            return
        self._filled = True  # first, since members may look into the table while they are imported
        if self.package:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group) if self.group else ():
            try:
                point.load()
            except Exception as error:  # somebody else's package must not take ours down with it
                warnings.warn(
                    f"{self.family} plug-in {point.name!r} ({point.value}) cannot be loaded: "
                    f"{type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def __getitem__(self, name: str) -> T:
        self._fill()
        if name not in self._members:
            known = ", ".join(sorted(self._members))
            raise SettingError(f"unknown {self.family} {name!r}; known: {known}")
        return self._members[name]

    def get(self, name: str) -> T | None:
        """The member of that name, None where there is none."""
        self._fill()
        return self._members.get(name)

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(sorted(self._members))

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._members


def _module_of(path: Path, family: str) -> ModuleType:
    """The module in a file, imported once however often it is named."""
    where = path.resolve()
    name = f"safeswitch_file_{where.stem}_{abs(hash(str(where))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, where)
    if not where.is_file() or spec is None or spec.loader is None:
        raise SettingError(f"{family}: there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are defined
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SettingError(
            f"{family}: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module
