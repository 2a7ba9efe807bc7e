"""Run a function as soon as another module has been imported, without importing it."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType


def when_imported(module_name: str, function: Callable[[], None]) -> None:
    """Call `function` once `module_name` has been imported; at once if it has been already."""
    if module_name in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _Finder(module_name, function))


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of one module, and takes itself away when it is asked for it."""

    def __init__(self, module_name: str, function: Callable[[], None]) -> None:
        self.module_name = module_name
        self.function = function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module_name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.function)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs the module's own loader, then the function."""

    def __init__(self, loader: importlib.abc.Loader, function: Callable[[], None]) -> None:
        self.loader = loader
        self.function = function

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.function()
