"""The layout of the package: a small root, imports that run one way, and import paths that are published."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_posswap

PACKAGE = Path(hf_posswap.__file__).parent
ROOT_MODULES = 8
FLOORS = 15
PUBLISHED = (
    *(f"hf_posswap.{name}" for name in hf_posswap.__all__),
    "hf_posswap.AutoModelForCausalLM",
    "hf_posswap.RopeConfig",
    "hf_posswap.modeling.PosSwapGPT2LMHeadModel",
    "hf_posswap.modeling.PosSwapGPT2Config",
    "hf_posswap.ramp.set_ramp",
    "hf_posswap.ramp.ramp_share",
    "hf_posswap.training.adapters.add_lora",
    "hf_posswap.training.adapters.load_adapter",
    *(
        f"hf_posswap.training.{name}"
        for name in ("Windows", "from_files", "from_dataset", "refine", "make_accelerator")
    ),
    *(
        f"hf_posswap.evaluation.{name}"
        for name in (
            *("key_tokens", "loss_by_position", "masked_loss_by_length", "passkey"),
            *("needles", "perplexity_by_length", "retrieval", "ruler_by_length"),
        )
    ),
    "hf_posswap.hub.push_folder",
    "hf_posswap.hub.push_adapter",
)
MAY_IMPORT = {
    "common": {"torch"},
    "schemes": {"torch"},
    "attention": {"torch", "transformers"},
    "texts": {"torch"},
    "results": {"torch", "transformers", "accelerate", "psutil"},
}
"""Packages below the models, and what they import besides the standard library and hf_posswap."""

TWICE = {"BarObserver", "LineObserver"}
"""Class names that stand in several modules, each for the same thing of another command: no others may join them."""


def name_of(path: Path) -> str:
    parts = ("hf_posswap", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> Mapping[str, Path]:
    return {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(name: str) -> Iterator[str]:
    """Everything a module imports by name, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@cache
def graph() -> Mapping[str, set[str]]:
    return {name: {other for other in imports_of(name) if other in modules()} - {name} for name in modules()}


def room_of(name: str) -> str:
    """The package or the module of the root that a module belongs to."""
    return ".".join(name.split(".")[:2])


@cache
def rooms() -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {room_of(name): set() for name in modules()}
    for name, others in graph().items():
        found[room_of(name)] |= {room_of(other) for other in others} - {room_of(name)}
    return found


def floors(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each node, one above all that it imports; a CycleError names a circle."""
    found: dict[str, int] = {}
    for name in TopologicalSorter(edges).static_order():
        found[name] = 1 + max((found[other] for other in edges[name]), default=0)
    return found


def test_the_graph_has_the_imports_inside_functions() -> None:
    assert "hf_posswap.commands" in graph()["hf_posswap.cli"]
    assert "hf_posswap.sources" in graph()["hf_posswap.commands.models"]


def test_the_root_of_the_package_is_small() -> None:
    found = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(found) <= ROOT_MODULES, f"find a package for one of {sorted(found)}"


def test_a_class_name_stands_for_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in TWICE} == {}


def test_no_module_imports_itself_by_way_of_others() -> None:
    floors(graph())


def test_packages_import_each_other_one_way() -> None:
    found = floors(rooms())
    assert found["hf_posswap.errors"] == 1
    assert found["hf_posswap.cli"] <= FLOORS
    assert max(found.values()) <= FLOORS


def test_nothing_imports_the_face_of_the_package() -> None:
    """Its names are looked up when they are used, in every package: what imports it imports all of them."""
    assert [name for name, others in graph().items() if "hf_posswap" in others] == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_below_the_models_import_what_they_may(package: str) -> None:
    inside = [name for name in modules() if f"{name}.".startswith(f"hf_posswap.{package}.")]
    found = {other.split(".")[0] for name in inside for other in imports_of(name)}
    assert found - set(sys.stdlib_module_names) - {"hf_posswap"} <= MAY_IMPORT[package]


def test_schemes_architectures_and_attention_know_of_each_other_what_they_may() -> None:
    below = {"hf_posswap.common", "hf_posswap.errors"}
    assert rooms()["hf_posswap.common"] <= {"hf_posswap.errors"}
    assert rooms()["hf_posswap.schemes"] <= below
    assert rooms()["hf_posswap.attention"] <= below
    assert rooms()["hf_posswap.architectures"] <= below | {"hf_posswap.schemes"}


@pytest.mark.parametrize("path", PUBLISHED)
def test_published_paths_can_be_imported(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is not None


def test_the_adapters_can_be_the_first_import() -> None:
    """Their import of peft imports what patches peft, which imports them."""
    script = "import hf_posswap.training.adapters"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    script = "import sys, hf_posswap; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
