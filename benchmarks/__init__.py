"""Measurements, one file a question; each prints a table and can write JSON with the environment it ran in."""

import os

# As in pipeline/__init__.py, which python -m cannot import yet where the current folder has another package of that name.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")
