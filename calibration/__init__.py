"""How far masks agree with each other and with ground truth."""

import pipeline  # noqa: F401 - before any library is imported that would report to its maker
