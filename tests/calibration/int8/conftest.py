"""The small networks, which calibration and the build half are both tried on."""

from tests.networks import _one_thread, pictures, tiny_u2net, tiny_unet

__all__ = ["_one_thread", "pictures", "tiny_u2net", "tiny_unet"]
