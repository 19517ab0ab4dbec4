"""Who imports whom: the direction of the imports is what keeps the parts apart. And the size of a module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zoology

ROOT = Path(zoology.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
LINES = 400

ALL = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
TRAINING = {"model", "architectures", "tasks", "record", "registry", "data", "training", "kernels"}
MAY_IMPORT = {
    "registry": set(),
    "record": set(),
    "kernels": {"kernels"},
    "tasks": {"tasks", "registry"},
    "architectures": {"architectures", "registry", "kernels"},
    "model": {"architectures", "registry", "kernels"},
    "data": TRAINING,
    "training": TRAINING,
    "train": TRAINING,
    "sweeps": {"sweeps", "train", "training", "record", "registry", "tasks", "architectures", "data"},
    "analysis": {"analysis", "record", "registry"},
    "cli": ALL,
    "cli_bench": ALL,
    "cli_runs": ALL,
    "cli_models": ALL,
    "cli_tasks": ALL,
    "flags": ALL,
    "tables": ALL,
    "__init__": ALL,  # loads its public names on first use
}
NO_TORCH = ("tasks", "analysis", "record", "registry")


def imports(tree, package):
    """Every module that a file imports, wherever in it; what stands under `if TYPE_CHECKING` is left out.

    Args:
        tree: the parsed file.
        package: the dotted package that it lies in, for relative imports.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for part in node.orelse:
                yield from imports(ast.Module([part], []), package)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            # `from zoology import x` gets the module x, or a name that the package takes from one of its modules.
            yield from (
                (zoology._HOMES.get(a.name, f"zoology.{a.name}") for a in node.names) if base == "zoology" else [base]
            )
        else:
            yield from imports(node, package)


def imported(path):
    package = ".".join(["zoology", *path.relative_to(ROOT).parts[:-1]])
    return list(imports(ast.parse(path.read_text()), package))


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def ids(path):
    return str(path.relative_to(ROOT))


def test_the_walk_sees_every_kind_of_import():
    text = """
import zoology.tasks.base
from zoology import Mixer, __version__, record
from . import sibling
from ..kernels import x
if TYPE_CHECKING:
    import zoology.cli
else:
    import zoology.flags
def f():
    try:
        import ray.tune as t
    finally:
        from zoology.train import fit
"""
    assert list(imports(ast.parse(text), "zoology.architectures")) == [
        "zoology.tasks.base",
        "zoology.architectures.base",
        "zoology.__version__",
        "zoology.record",
        "zoology.architectures",
        "zoology.kernels",
        "zoology.flags",
        "ray.tune",
        "zoology.train",
    ]


def test_every_part_of_the_house_has_its_rule():
    assert set(MAY_IMPORT) >= ALL


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_imports_go_one_way(path):
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("zoology.")} - {"__version__"}
    assert ours <= MAY_IMPORT[room(path)]


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_ray_and_torch_stay_in_their_rooms(path):
    theirs = {name.split(".")[0] for name in imported(path)}
    if path != ROOT / "sweeps" / "run.py":
        assert "ray" not in theirs
    if room(path) in NO_TORCH:
        assert not theirs & {"torch", "triton"}


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_is_short(path):
    assert len(path.read_text().splitlines()) <= LINES


def fresh(code):
    """What a new interpreter prints for some code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_or_its_command_loads_nothing_heavy():
    heavy = "[name for name in ('torch', 'ray', 'pandas', 'matplotlib', 'pydantic', 'numpy') if name in sys.modules]"
    assert fresh(f"import sys, zoology; print(*{heavy})") == []
    assert fresh(f"import sys, zoology.cli; print(*{heavy})") == []


def test_tasks_and_analysis_work_without_torch_and_ray():
    code = """
import sys
sys.modules["torch"] = sys.modules["ray"] = None  # importing either raises
import numpy as np
import zoology.tasks, zoology.analysis.plots, zoology.analysis.records
from zoology import IGNORE, register_task
from zoology.tasks.base import build_task
task = build_task("mqar", {"num_pairs": 2})
print((task.sample(np.random.default_rng(0), 3).labels != IGNORE).sum())
"""
    assert fresh(code) == ["6"]


def test_the_public_names_are_there():
    assert set(zoology.__all__) == set(dir(zoology))
    for name in zoology.__all__:
        assert getattr(zoology, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Mixre'"):
        zoology.Mixre
