"""The package as users install it, each form tried from an empty directory outside the tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

USE = """
import sys
from pathlib import Path
import torch
import xattr_cuda as xa

home = Path(xa.__file__).parent
assert home.is_relative_to(sys.argv[1]), home
assert (xa.ops.extension is not None) == (sys.argv[2] == "extension"), xa.ops.unavailable("cpu")
assert (home / "py.typed").exists()

model = xa.models.xmlp([40, 64, 3], dtype=torch.float64)
x = torch.randn(7, 40, dtype=torch.float64, requires_grad=True)
output, attribution = xa.attribute(model, x, target=1)
(output.sin().sum() + xa.priors.gini(attribution)).backward()
found = [p.grad.clone() for p in (x, *model.parameters())]
for p in (x, *model.parameters()):
    p.grad = None
output = model(x)
(gradient,) = torch.autograd.grad(output[:, 1].sum(), x, create_graph=True)
with xa.use_backend("reference"):
    (output.sin().sum() + xa.priors.gini(x * gradient)).backward()
for p, g in zip((x, *model.parameters()), found):
    assert torch.allclose(p.grad, g, rtol=1e-10, atol=1e-12)
print("works")
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command; its output, or the test fails with it."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}"
    return result.stdout


def assert_works(home: Path, empty: Path, kind: str, *options: str, **environment: str) -> None:
    """The package that lies under `home` computes right gradients, from an empty directory."""
    empty.mkdir()
    assert "works" in run(sys.executable, "-W", "error", *options, "-c", USE, home, kind, cwd=empty, **environment)


def assert_installed_works(target: Path, empty: Path, kind: str) -> None:
    """The same for a package installed into `target`, with the editable install of this environment out of sight."""
    path = os.pathsep.join([str(target), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    assert_works(target, empty, kind, "-S", PYTHONPATH=path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, made from a copy of the tree without anything that was built."""
    tree = tmp_path_factory.mktemp("tree") / "xattr_cuda"
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "demo", "runs")
    shutil.copytree(ROOT, tree, ignore=built)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", cwd=tree)
    (archive,) = (tree / "dist").glob("*.tar.gz")
    return archive


def pip_install(archive: Path, target: Path, **environment: str) -> str:
    """Install into a folder of its own, without dependencies; the build's messages."""
    pip = (sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--target", target)
    return run(*pip, archive, cwd=target.parent, **environment)


def test_editable_install_works_outside_the_tree(tmp_path: Path) -> None:
    import xattr_cuda as xa

    home = Path(xa.__file__).parent
    if home != ROOT / "xattr_cuda":
        pytest.skip("the package under test is not an editable install of this tree")
    assert_works(home, tmp_path / "empty", "extension" if xa.ops.extension else "reference")


def test_wheel_built_from_the_source_distribution_works(source: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation")
    said = run(*pip, "--wheel-dir", tmp_path, source, cwd=tmp_path)
    assert "C++ extension against torch" in said
    assert "no CUDA kernels: " in said
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    pip_install(wheel, target)
    assert_installed_works(target, tmp_path / "empty", "extension")


def test_package_without_extension_runs_on_the_reference(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    said = pip_install(source, target, NO_EXT="1")
    assert "no extension: NO_EXT=1" in said
    assert not list(target.rglob("*.so"))
    assert_installed_works(target, tmp_path / "empty", "reference")


def test_forced_cuda_without_cuda_stops_the_build_with_the_reason(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", str(source)]
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "FORCE_CUDA": "1"}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "FORCE_CUDA=1, but" in result.stdout + result.stderr
