"""The questions of `python -m benchmarks QUESTION`, one file each."""
