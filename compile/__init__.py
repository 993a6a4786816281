"""The build half: trained weights to a bundle that the run half can trust. Always ``from compile.x import y``."""

import os

# As in pipeline/__init__.py, which python -m cannot import yet where the current folder has another package of that name.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")
