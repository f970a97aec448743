"""The package as a whole: what importing it does, its public index, its layers, and the size of its parts."""

import ast
import types
from pathlib import Path

import pytest
from helpers import run_python

import xattr_cuda as xa

ROOT = Path(__file__).parents[1]
PACKAGE, KERNELS = ROOT / "xattr_cuda", ROOT / "kernels"


def module_name(path):
    """The name under which a file of the package or of kernels/ is imported."""
    if path.is_relative_to(KERNELS):
        parts = ("xattr_cuda", "kernels", *path.relative_to(KERNELS).with_suffix("").parts)
    else:
        parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for folder in (PACKAGE, KERNELS) for path in sorted(folder.rglob("*.py"))}
OPTIONAL = ("triton",)  # third-party modules that only their own back end needs


def test_every_module_is_imported_without_a_warning():
    names = [name for name in FILES if not name.endswith("__main__") and name.split(".")[2:3] != ["triton"]]
    assert "xattr_cuda.kernels.reference.gini" in names
    result = run_python("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names))
    assert result.returncode == 0, result.stderr
    assert not result.stdout
    assert not result.stderr


def test_the_library_does_not_import_what_only_the_command_line_needs():
    extra = ["typer", "rich", "sklearn", "matplotlib", "pandas", "captum", "triton", "causaldata"]
    code = "import sys, torch\nbefore = set(sys.modules)\nimport xattr_cuda\n"
    code += f"print(*(set(sys.modules) - before) & {set(extra)})"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.split()


def test_the_public_index_is_complete_and_sorted():
    modules = {name for name, value in vars(xa).items() if isinstance(value, types.ModuleType)}
    public = {name for name in vars(xa) if not name.startswith("_")} - modules
    assert public <= set(xa.__all__)
    assert all(hasattr(xa, name) for name in xa.__all__)
    assert len(set(xa.__all__)) == len(xa.__all__)
    assert xa.__all__ == sorted(xa.__all__)


@pytest.mark.parametrize("name", xa.__all__)
def test_everything_public_says_what_it_is(name):
    value = getattr(xa, name)
    assert isinstance(value, str) or (value.__doc__ or "").strip()


LAYERS = {  # each part of the package imports only itself and what has a lower number, as in CONTRIBUTING.md
    "_version": 0,
    "extras": 0,
    "kernels": 0,
    "ops": 1,
    "sweep": 2,
    "nn": 3,
    "models": 3,
    "check": 3,
    "convert": 4,
    "attr": 4,
    "priors": 4,
    "bridges": 5,
    "": 6,  # xattr_cuda/__init__.py, the public index
    "training": 7,
    "bench": 8,
    "cli": 9,
    "__main__": 10,
}


def imports(name, path):
    """Names of the package's modules that a file imports, wherever in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            yield from (
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in FILES else source for alias in node.names
            )


def layer(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", FILES)
def test_dependencies_point_one_way(name):
    own = layer(name)
    for imported in imports(name, FILES[name]):
        if imported.split(".")[0] == "xattr_cuda" and imported != "xattr_cuda._C":
            other = layer(imported)
            assert other == own or LAYERS[other] < LAYERS[own], f"{name} imports {imported}"


def test_kernels_import_nothing_of_the_package_but_kernels():
    for name, path in FILES.items():
        if layer(name) == "kernels":
            assert all(layer(i) == "kernels" for i in imports(name, path) if i.startswith("xattr_cuda")), name


SOURCES = [
    path
    for folder in ("xattr_cuda", "kernels", "csrc", "tests", "benchmarks", "examples", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")
] + [ROOT / "setup.py"]


def source_id(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=source_id)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".py"], ids=source_id)
def test_no_function_is_longer_than_60_lines_and_every_file_says_what_it_is_for(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A signature that declares the options of a command is a table, not code.
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno if body else 0
            assert lines < 60, f"{node.name} at line {node.lineno}"
