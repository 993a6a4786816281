"""INT8: ranges, equalization, rounding, the search over layers and its recipe.

The one room of calibration that needs PyTorch; `compile` calls it.
"""
