"""The small networks, which calibration and the build half are both tried on."""

from tests.networks import pictures, tiny_u2net, tiny_unet

__all__ = ["pictures", "tiny_u2net", "tiny_unet"]
