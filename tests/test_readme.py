"""The README keeps its promises: commands parse, files exist, figures are those of the results."""

import json
import re
import shlex
from pathlib import Path

import pytest

import benchmarks.__main__ as benchmarks_command
from benchmarks import readme
from benchmarks.questions import accuracy
from benchmarks.readme import with_figures
from pipeline.command.command_line import OptionParser
from pipeline.command.options import parse_options
from pipeline.errors import OptionError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(module):
    """The command lines of the README that run a module, without their comments."""
    found = [
        shlex.split(line, comments=True)[3:]
        for line in README.replace("\\\n", " ").splitlines()
        if line.strip().startswith(f"python -m {module} ")
    ]
    assert found, f"the README has no python -m {module}"
    return found


def test_two_commands_stand_at_the_top():
    first_block = re.search(r"```\w*\n(.*?)```", README, re.DOTALL).group(1)
    assert [line.split("#")[0].strip() for line in first_block.strip().splitlines()] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ndemo:" in makefile
    assert "\ntest:" in makefile


@pytest.mark.parametrize("arguments", commands("pipeline"), ids=" ".join)
def test_pipeline_commands_parse(arguments):
    parse_options(arguments)


@pytest.mark.parametrize("arguments", commands("compile"), ids=" ".join)
def test_compile_commands_parse(arguments):
    from compile.options import parse_options as parse_compile_options

    parse_compile_options(arguments)


@pytest.mark.parametrize("arguments", commands("benchmarks"), ids=" ".join)
def test_benchmark_commands_parse(arguments):
    assert arguments[0] in benchmarks_command.QUESTIONS
    parser = OptionParser()
    parser.add_argument("--json")
    accuracy.add_options(parser)
    parser.parse_args(arguments[1:])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    for link in links:
        if "://" not in link:
            assert (document.parent / link).exists(), link


def test_figures_are_those_of_the_results():
    found = []
    for name in readme.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert readme.with_figures(text, ROOT / "benchmarks" / "results") == text, name
        found += re.findall(r"figures: (\w+)", text)
    assert set(found) == set(readme.BLOCKS)


def test_figures_are_written_between_their_marks(tmp_path):
    text = "a\n<!-- figures: accuracy -->\nold\nolder\n<!-- end -->\nb\n"
    row = {"max_f": 0.5, "s_measure": 0.25, "mae": 0.125, "iou": 1, "boundary_iou": 0}
    (tmp_path / "accuracy_u2netp_official.json").write_text(json.dumps({"table": [row]}))
    made = with_figures(text, tmp_path)
    assert "| 0.5000 | 0.2500 | 0.1250 | 1.0000 | 0.0000 |\n<!-- end -->\nb\n" in made
    assert "old" not in made
    assert with_figures(made, tmp_path) == made
    empty = "<!-- figures: accuracy -->\n<!-- end -->\nbetween\n"
    assert with_figures(empty + text, tmp_path).count("between") == 1
    assert with_figures(empty + text, tmp_path).count("0.5000") == 2
    with pytest.raises(
        OptionError,
        match="figures: expected one of accuracy, good, speed, peers, sizes, flicker, motion, networks, scale, int8, int8_carvana, "
        "peers_with_openvino, got beauty",
    ):
        with_figures(text.replace("accuracy", "beauty"), tmp_path)
    with pytest.raises(OptionError, match=r"latency.json: expected a result in .*: run the benchmark with --json"):
        with_figures(text.replace("accuracy", "speed"), tmp_path)


def test_the_picture_moves_and_is_small():
    picture = ROOT / re.search(r"!\[.*?\]\((.*?)\)", README)[1]
    content = picture.read_bytes()
    assert len(content) < 3_000_000
    assert (content[:4], content[8:16], b"ANIM" in content[:64]) == (b"RIFF", b"WEBPVP8X", True)


def test_every_render_mode_is_told():
    from pipeline.render.modes import MODES

    for mode in MODES:
        assert f"`{mode}`" in README


def test_figures_of_int8_are_those_that_were_measured():
    result = json.loads((ROOT / "benchmarks/results/int8_u2netp.json").read_text(encoding="utf-8"))
    rows = {row["tool"]: row for row in result["table"]}
    ours = rows.pop("ours")
    assert (
        f"| INT8 ({100 * ours['share_of_work']:.0f} % of the work in INT8), IoU with the FP32 masks | {ours['iou_mean']:.3f} |"
        in README
    )
    others = max(row["iou_mean"] for tool, row in rows.items() if tool not in ("fp32", "ours_for_cpu"))
    assert f"IoU with the FP32 masks | {others:.3f} |" in README
    told = (ROOT / "docs/quantization.md").read_text(encoding="utf-8")
    for row in (ours, *rows.values()):
        assert row["tool"] == "fp32" or f"{row['iou_mean']:.4f}" in told
        assert f"{row['max_f']:.4f}" in told
    assert f"**{ours['iou_mean']:.4f}** | {ours['iou_low']:.4f} | {ours['iou_worst']:.3f} | {ours['max_f']:.4f}" in told
