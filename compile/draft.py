"""A bundle that is not written yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.bundles.bundle import Bundle, Manifest


@dataclass(frozen=True, slots=True)
class Draft:
    """What a bundle is made of.

    Attributes:
        manifest: without the files' sha256, which come when it is written.
        files: content by name.
    """

    manifest: Manifest
    files: Mapping[str, bytes]

    def write(self, folder: str | os.PathLike[str]) -> Bundle:
        """Write it: see ``Bundle.write``.

        Raises:
            BundleError: the folder holds something else, or cannot be written.
        """
        return Bundle.write(folder, self.manifest, self.files)
