"""Everything at once on a machine with a GPU: build, test on the device, time; one table, and JSON.

    make gpu-check                                   # or: python benchmarks/gpu_check.py --help

Needs torch with CUDA, triton, numpy, rich, typer and pytest; no network, no environment of its own. Whatever fails is
said and does not keep the rest from running. The exit status is 0 if all tests passed and no row failed.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from device_tests import counts, run_tests

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "build" / "gpu-check"
EXTENSION_SECONDS = 200.0


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build, test and time xattr_cuda on the GPU of this machine.")
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("--extension", action=yes_or_no, default=True, help="compile the C++ extension")
    parser.add_argument("--tests", action=yes_or_no, default=True, help="run the tests on the device")
    parser.add_argument("--bench", action=yes_or_no, default=True, help="time cases and operators")
    parser.add_argument("--compile", action=yes_or_no, default=False, help="time compiled steps too (long)")
    parser.add_argument("--cases", nargs="*", default=None, help="cases to time; by default all")
    parser.add_argument("--operators", nargs="*", default=None, help="operators to time; by default all")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="dtypes to time at")
    parser.add_argument("--precision", default="high", choices=["highest", "high", "medium"], help="of fp32 products")
    parser.add_argument("--rounds", type=int, default=20, help="calls timed of each contestant")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-check.json", help="where the JSON goes")
    parser.add_argument("--readme", type=Path, default=None, help="Markdown file whose marked table to renew")
    parser.add_argument(
        "--report", type=Path, default=None, help="JSON of an earlier check: measure nothing, show that"
    )
    parser.add_argument("--limit-seconds", type=float, default=450.0, help="what is not done by then is left out")
    return parser.parse_args(given)


def say(words: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {words}", flush=True)


def lay_out(folder: Path = PACKAGE) -> None:
    """Copy the package as an installation would have it: the leaves of kernels/ in their places."""
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "xattr_cuda", folder / "xattr_cuda", ignore=ignore)
    for leaf in sorted((ROOT / "kernels").iterdir()):
        if leaf.is_dir() and leaf.name.isidentifier() and not leaf.name.startswith("_"):
            shutil.copytree(leaf, folder / "xattr_cuda" / "kernels" / leaf.name, ignore=ignore)


def build_extension(folder: Path = PACKAGE, seconds: float = EXTENSION_SECONDS) -> str:
    """Compile the C++ extension with this Python into the laid-out package; why it is missing, or an empty string."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    command += ["--build-temp", str(folder.parent / "gpu-check-objects")]
    env = {"MAX_JOBS": str(os.cpu_count() or 1), **architectures(), **os.environ}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not compiled within {seconds:.0f} s"
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {done.returncode}"
    return ""


def architectures() -> dict[str, str]:
    """Compile CUDA kernels for the GPU that is here alone."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"TORCH_CUDA_ARCH_LIST": ".".join(map(str, torch.cuda.get_device_capability()))}


def missing_cuda_kernels() -> str:
    """Why the package that was laid out has no kernels in CUDA C++, as a process that loads it anew says; or empty."""
    code = "import xattr_cuda as xa; print(xa.ops.unavailable('cuda'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def machine(device: str) -> dict[str, Any]:
    """What decides the figures."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "not installed"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "CUDA of torch": torch.version.cuda or torch.version.hip,
        }
    return found


def tasks(options: argparse.Namespace) -> list[Any]:
    """What is timed: the device, then the operators, then the cases."""
    from xattr_cuda.bench.gpu.steps import CASES
    from xattr_cuda.bench.gpu.worker import Task
    from xattr_cuda.ops import SCHEMAS

    common = {"device": options.device, "rounds": options.rounds, "precision": options.precision}
    names = {"operator": options.operators, "step": options.cases}
    known = {"operator": list(SCHEMAS), "step": list(CASES)}
    for kind, chosen in names.items():
        if strangers := [name for name in chosen or () if name not in known[kind]]:
            raise SystemExit(f"there is no {kind} {', '.join(strangers)}; choose among {', '.join(known[kind])}")
    found = [Task("peaks", **common)]
    for kind, chosen in names.items():
        compiled = options.compile and kind == "step"
        pairs = itertools.product(options.dtypes, known[kind] if chosen is None else chosen)
        found += [Task(kind, name, dtype, compiled=compiled, **common) for dtype, name in pairs]
    return found


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    if options.report is not None:
        return finish(json.loads(options.report.read_text(encoding="utf-8")), options.report, options.readme)
    output = options.output.resolve()
    readme = options.readme and options.readme.resolve()
    deadline = time.monotonic() + options.limit_seconds
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("this machine has no GPU that torch can use; --device cpu rehearses the check without one")
    say("laying out the package")
    lay_out()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), str(ROOT / "tests")])
    sys.path.insert(0, str(PACKAGE))
    planned = tasks(options) if options.bench else []
    os.chdir(PACKAGE)  # so that no process finds the sources before the package
    report: dict[str, Any] = {"machine": machine(options.device), "extension": "not asked for"}
    if options.extension:
        say("compiling the C++ extension")
        report["extension"] = build_extension() or "built"
        say(f"C++ extension: {report['extension']}")
    report["CUDA kernels"] = missing_cuda_kernels() or "built"
    say(f"kernels in CUDA C++: {report['CUDA kernels']}")
    if options.tests:
        say("testing on the device")
        report["tests"] = run_tests(options.device, deadline - 0.4 * options.limit_seconds, say)
        save(report, output)
    if options.bench:
        from xattr_cuda.bench.gpu.supervise import supervise

        say("timing")
        found = supervise(planned, deadline, say)
        rows = [row.to_json() for row in found.rows]
        report |= {"peaks": found.peaks, "warnings": found.warnings, "rows": rows}
    save(report, output)
    return finish(report, output, readme)


def finish(report: dict[str, Any], output: Path, readme: Path | None) -> int:
    """Show a report, and put its steps where a README has the marks for them; the exit status."""
    if readme is not None:
        from xattr_cuda.bench import markers
        from xattr_cuda.bench.gpu.rows import Row, markdown

        found = {"gpu": markdown([Row(**row) for row in report.get("rows", [])], report["machine"])}
        text = readme.read_text(encoding="utf-8")
        readme.write_text(markers.rewrite(text, found, str(readme)), encoding="utf-8")
    return show(report, output)


def save(report: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def show(report: dict[str, Any], output: Path) -> int:
    """Print everything; the exit status."""
    from rich.console import Console

    from xattr_cuda.bench.gpu.rows import Row, remarks, table

    console = Console(width=None if sys.stdout.isatty() else 140)
    rows = [Row(**row) for row in report.get("rows", [])]
    if rows:
        console.print(table(rows))
    for line in (*remarks(rows), *report.get("warnings", [])):
        console.print(line, highlight=False, markup=False)
    for name in ("machine", "peaks"):
        if name in report:
            console.print(f"{name}: {report[name]}", highlight=False, markup=False)
    for name in ("extension", "CUDA kernels"):
        if name in report:
            console.print(f"{name}: {report[name]}", highlight=False, markup=False)
    tests = report.get("tests", {})
    for failure in tests.get("failures", []):
        console.print(f"FAILED {failure['test']}: {failure['why']}", highlight=False, markup=False)
    if tests:
        console.print(f"tests: {counts(tests)}", highlight=False)
    console.print(f"written: {output}", highlight=False, markup=False)
    good = not any(row.failed for row in rows) and not tests.get("failed") and not tests.get("missing")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
