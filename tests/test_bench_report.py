"""Reports of the benchmark: tables, marked blocks of a file, charts, JSON and the command."""

import importlib.util
import json
import subprocess
import sys

import pytest
from rich.console import Console
from test_bench import IMAGES, TINY
from test_cli import PNG, assert_ctrl_c_is_one_line_and_130, assert_one_line_error, run

from xattr_cuda.bench import charts, markers, measure, overhead, report, scaling
from xattr_cuda.bench.cases import GINI, GROUPS, STEPS
from xattr_cuda.bench.contestants import CONTESTANTS, Contestant, double_backward_loss, eager
from xattr_cuda.bench.count import Count
from xattr_cuda.bench.on_gpu import BY_LAYER, RESULTS, OnGpu
from xattr_cuda.cli import main
from xattr_cuda.training.errors import UserError

TEXT = "# Title\n\n<!-- bench:a -->\n\nold\n\n<!-- /bench:a -->\nbetween\n<!-- bench:b-2 -->\n<!-- /bench:b-2 -->\nend"


def invented():
    """Counts for a GPU: contestant k launches k + 1 kernels and moves as many hundred bytes."""
    names = (*RESULTS, BY_LAYER)
    network, step = ({name: Count(50, 100 * k, k * part) for k, name in enumerate(names, 1)} for part in (1, 2))
    return [OnGpu("bf16", True, network, step, least=200, library=400, flops=25)]


def made_up(cases=STEPS, contestants=CONTESTANTS, more=True):
    """Measurements of invented times: contestant k takes k + 1 times as long as the first."""
    found = []
    for case in cases.values():
        names = [n for n, one in contestants.items() if one.group != "floor" or case.widths]
        results = measure.summarise({name: [(k + 1.0) * 1e-3] * 5 for k, name in enumerate(names)})
        floors = {"one chain": 1.5, "two chains": 2.1} if more else {}
        for k, result in enumerate(results.values()):
            if more:
                keys = ("flops ratio", "bytes ratio", "peak ratio", "resident ratio")
                result.more = {"flops": 10.0, "launches": 100.0 + k, **dict.fromkeys(keys, k + 10.5)}
        found.append(measure.Measurement(case, 5, results, floors, on_gpu=invented() if more else []))
    return found


def whole():
    """Those of every case."""
    names = dict.fromkeys(("torch.sort", "gini", "pairwise"), CONTESTANTS["plain"])
    return [*made_up(), *made_up(GINI, names, more=False)]


def test_blocks_are_rewritten_and_nothing_else():
    new = markers.rewrite(TEXT, {"b-2": "| new |\n", "a": "news"}, "F")
    assert new == (
        "# Title\n\n<!-- bench:a -->\n\nnews\n\n<!-- /bench:a -->\nbetween\n"
        "<!-- bench:b-2 -->\n\n| new |\n\n<!-- /bench:b-2 -->\nend"
    )
    assert markers.rewrite(new, {"b-2": "| new |\n", "a": "news"}, "F") == new
    assert markers.rewrite(TEXT, {}, "F") == TEXT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no marker", "F has no block 'a'; add <!-- bench:a -->"),
        ("<!-- bench:a -->\n", "block 'a' has no end"),
        ("<!-- /bench:a -->\n", "line 1: block 'a' ends without a start"),
        (
            "x\n<!-- bench:a -->\n<!-- bench:b -->\n<!-- /bench:b -->\n<!-- /bench:a -->\n",
            "line 3: block 'b' starts in",
        ),
        ("<!-- bench:a -->\n<!-- /bench:a -->\n" * 2, "line 3: a second block 'a'"),
        ("<!-- bench:a -->\n<!-- /bench:b -->\n", "line 2: block 'b' ends without a start"),
    ],
    ids=["missing", "no end", "no start", "nested", "twice", "crossed"],
)
def test_broken_markers_are_refused(text, words):
    with pytest.raises(UserError) as refused:
        markers.rewrite(text, {"a": "new"}, "F")
    assert words in str(refused.value)


def test_the_table_of_the_terminal_fits_100_columns_and_loses_no_word():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(report.terminal_table([*made_up(), *made_up(GINI, dict.fromkeys("abc", CONTESTANTS["plain"]))]))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in ("xresnet18", "gini-150528", "double backward", "attribute_loss", "RSS"))


def test_failures_are_in_every_report():
    measured = made_up({"tiny": TINY}, more=False)
    measured[0].results["EG(8)"] = measure.Result(failed="failed: no | memory")
    assert report.remarks(measured) == ["tiny, EG(8): failed: no | memory"]
    assert "| failed: no / memory |" in report.markdown(measured)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(report.terminal_table(measured))
    assert "failed" in captured.get()


def test_only_what_was_measured_whole_is_renewed():
    assert list(report.readme_blocks(made_up({"paper": STEPS["paper"]}), [])) == []
    some = {name: STEPS[name] for name in GROUPS["perceptrons"]}
    assert list(report.readme_blocks(made_up(some), [])) == ["perceptrons"]
    everything = report.readme_blocks(whole(), ["docs/steps.png"], dict.fromkeys(overhead.NAMES, 1e-5))
    assert set(everything) == set(report.BLOCKS)
    assert everything["charts"] == "![Time of a training step over the plain step](docs/steps.png)"
    assert "| 118-512-128-32-1 | 100 | 2.00x | 3.00x |" in everything["perceptrons"]
    assert "Peak of allocated memory:" in everything["convolutional"]
    assert "| image-10 | 12.50x (2.10x) | 13.50x (1.50x) |" in everything["operations"]
    row = "| paper | bf16 | whole | 3/6 | 2/4 | 0.0003000 | 1.50x | 2.00x | 1.00x | 1.00x | 2.00x |"
    assert row in everything["launches"]
    assert "| 150528 | 2.00x | 3.00x |" in everything["gini"]
    assert "take 10 us" in " ".join(everything["overhead"].split())
    assert "operations" not in report.readme_blocks(made_up(more=False), [])


def test_the_readme_has_every_block(request):
    text = (request.config.rootpath / "README.md").read_text()
    markers.require(text, list(report.BLOCKS), "README.md")


def test_charts_are_drawn(tmp_path):
    charts.save_bars(made_up(), tmp_path / "bars.png")
    points = scaling.scale(1, axes={"batch": (2, 4), "width": (3, 5), "hidden layers": (1, 2), "classes": (1, 3)})
    charts.save_scaling(points, tmp_path / "scaling.png")
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in ("bars.png", "scaling.png"))
    assert [point["value"] for point in scaling.to_json(points)] == [2, 4, 3, 5, 1, 2, 1, 3]


def test_networks_of_the_scaling_differ_in_one_number():
    assert scaling.network("batch", 64) == ([256, 256, 256, 1], 64)
    assert scaling.network("width", 32) == ([256, 32, 32, 1], 1024)
    assert scaling.network("hidden layers", 1) == ([256, 256, 1], 1024)
    assert scaling.network("classes", 10) == ([256, 256, 256, 10], 1024)


def assert_schema(content, cases, contestants):
    assert {"processor", "vector instructions", "threads", "torch", "python", "xattr_cuda"} <= set(content["machine"])
    assert list(content["cases"]) == cases
    for case in content["cases"].values():
        assert set(case["results"]) == contestants
        for result in case["results"].values():
            assert result["seconds"]["p20"] <= result["seconds"]["p50"] <= result["seconds"]["p80"]
            assert result["ratio"] > 0
            assert set(result["ratio of each round"]) == {"p20", "p50", "p80"}


def test_json_holds_everything():
    measured = [measure.measure(case, rounds=2) for case in (TINY, IMAGES)]
    content = json.loads(json.dumps(report.content(measured)))
    assert_schema(content, ["tiny", "images"], {"plain", "double backward", "attribute", "attribute_loss"})


def test_the_command_reports_and_keeps_its_figures(tmp_path):
    process = run(
        "bench", "--case", "paper", "--rounds", 2, "--threads", 1, "--count", "--output", "o", folder=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert max(map(len, process.stdout.splitlines())) <= 100
    assert "threads: 1" in process.stdout
    assert "least FLOPs over plain: one chain 1.58x" in process.stdout
    content = json.loads((tmp_path / "o" / "bench.json").read_text())
    names = {"plain", "double backward", "attribute", "attribute_loss", "attribute, rows=1/4", "bare products"}
    assert_schema(content, ["paper"], names)
    assert content["machine"]["threads"] == 1
    assert content["cases"]["paper"]["results"]["attribute"]["flops ratio"] == pytest.approx(1.58, abs=0.01)
    assert (tmp_path / "o" / "bench.md").read_text().startswith("# Benchmark\n")
    if importlib.util.find_spec("triton") is None:
        assert "paper: what a GPU would do is not counted: Triton is not installed" in process.stdout
    else:
        assert "A step on a GPU, counted without one" in process.stdout
        assert set(content["cases"]["paper"]["on a GPU"]) == {"fp32", "bf16"}
    assert (tmp_path / "o" / "bench.png").read_bytes().startswith(PNG)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["xattr-cuda", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_list_names_cases_and_contestants(monkeypatch, capsys):
    assert command(monkeypatch, "--list") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*STEPS, *GINI, *GROUPS, *CONTESTANTS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--case", "papper"), "there is no case 'papper'; choose among paper, "),
        (("--rounds", 0), "--rounds"),
        (("--readme", "none.md"), "none.md cannot be read"),
        (("--readme", "bare.md"), "bare.md has no block 'machine'"),
        (("--output", "bare.md"), "cannot be made"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_before_any_work(arguments, words, tmp_path, monkeypatch, capfd):
    (tmp_path / "bare.md").write_text("nothing\n")
    monkeypatch.chdir(tmp_path)
    code = command(monkeypatch, *arguments)
    captured = capfd.readouterr()
    finished = subprocess.CompletedProcess([], code, captured.out, captured.err)
    assert_one_line_error(finished, words)


def test_the_command_refuses_wrong_gradients(monkeypatch, capfd):
    wrong = Contestant("wrong", "base", eager(lambda p: 2 * double_backward_loss(p)), double_backward_loss)
    monkeypatch.setitem(CONTESTANTS, "attribute", wrong)
    code = command(monkeypatch, "--case", "paper", "--rounds", 1)
    captured = capfd.readouterr()
    finished = subprocess.CompletedProcess([], code, captured.out, captured.err)
    assert_one_line_error(finished, "paper is not timed: the gradient of parameter 0 by 'attribute' is off", code=1)
    assert "ratio" not in captured.out


def test_the_command_renews_what_it_measured_whole(tmp_path, monkeypatch, capsys):
    text = "".join(f"<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n" for name in report.BLOCKS)
    (tmp_path / "R.md").write_text(text)
    monkeypatch.setattr("xattr_cuda.bench.run.run", lambda *args: whole())
    monkeypatch.setattr(overhead, "measure", lambda rounds: dict.fromkeys(overhead.NAMES, 1e-5))
    assert command(monkeypatch, "--case", "all", "--overhead", "--readme", tmp_path / "R.md") == 0
    new = (tmp_path / "R.md").read_text()
    assert "old" not in new
    assert "![Time of a training step over the plain step](docs/steps.png)" in new
    assert (tmp_path / "docs" / "steps.png").read_bytes().startswith(PNG)
    monkeypatch.setattr("xattr_cuda.bench.run.run", lambda *args: made_up({"paper": STEPS["paper"]}))
    assert command(monkeypatch, "--readme", tmp_path / "R.md") == 0
    assert (tmp_path / "R.md").read_text() == new
    assert "Left as they were: machine, perceptrons" in capsys.readouterr().out


def test_ctrl_c_is_one_line_and_130(tmp_path):
    assert_ctrl_c_is_one_line_and_130("bench", "--case", "paper", "--rounds", "1000000", folder=tmp_path, into_work=2)


def test_the_overhead_is_measured_and_said():
    found = overhead.measure(rounds=2)
    assert set(found) == set(overhead.NAMES)
    assert 0 < found["operators"] < found["attribute"]
    words = overhead.words(found)
    assert f"take {1e6 * found['attribute']:.0f} us" in " ".join(words.split())
    assert max(map(len, words.splitlines())) <= 120
