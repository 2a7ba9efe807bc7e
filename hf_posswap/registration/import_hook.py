"""Call of a function when another module has been imported, without importing that module."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def when_imported(module_name: str, function: Callable[[], None]) -> None:
    """Call `function` after `module_name` has been imported; immediately if it is already imported."""
    if module_name in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _Finder(module_name, function))


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of a module, and stays registered until the import, because other code may only look it up."""

    def __init__(self, module_name: str, function: Callable[[], None]) -> None:
        self.module_name = module_name
        self.function = function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module_name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Runs the loader of the module, then the function."""

    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Restores the module's own loader, because tools ask it for the module's source and files.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
            self.finder.function()
