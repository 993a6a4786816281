"""Which programs a CPU runs slower than FP32, so that nobody takes them there unknowingly."""

from __future__ import annotations

from pipeline.bundles.bundle import Manifest


def slower_on_cpu(manifest: Manifest) -> str:
    """One line that says why FP32 is faster on a CPU, and what to do; empty if it is not."""
    if manifest.was_searched:
        return (
            "this int8 program is for TensorRT, and slower than fp32 on a CPU: for a CPU compile with --precision fp32, "
            "or with --target onnxruntime --precision int8"
        )
    if manifest.precision == "fp16":
        return (
            "a CPU computes fp16 in fp32 with conversions on top, slower than fp32: for a CPU compile with --precision fp32 "
            "--target onnxruntime"
        )
    return ""
