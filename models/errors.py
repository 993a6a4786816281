"""The errors of the networks and their weights: one sentence each, saying what, expected, got and do.

ModelError                    something that the user can mend
├── CheckpointError           a file of weights cannot be used
│   └── NotOurNetworkError    the file is whole, but holds another network than U-Net or U²-Net
└── WeightsUnavailableError   published weights cannot be had here

This room imports nothing of the others, so the tree has its own root; ``compile`` shows a ``ModelError`` like one of
its own.
"""

from __future__ import annotations


class ModelError(Exception):
    """Something that the user can mend; the message says how."""


class CheckpointError(ModelError):
    """A file of weights cannot be used: missing, damaged, unsafe, or made for another network."""


class NotOurNetworkError(CheckpointError):
    """The file is whole, but its network is neither U-Net nor U²-Net; a caller may take it as a foreign network."""


class WeightsUnavailableError(ModelError):
    """Published weights cannot be downloaded, or are not the ones that were published."""
