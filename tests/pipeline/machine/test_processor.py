"""What a processor computes in, on machines that are folders."""

import pytest

from pipeline.machine.processor import has_bf16


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("model name\t: X\nflags\t\t: fpu avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu\nflags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx512f\n", False),
        ("model name\t: bf16\n", False),
        (None, False),
    ],
)
def test_bf16_is_among_the_flags(tmp_path, lines, expected):
    if lines is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(lines)
    assert has_bf16(tmp_path) is expected
