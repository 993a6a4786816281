"""Your own checkpoint in INT8, proven against the trained network: python examples/own_network.py unet.pth photos/ bundle

The photos should look like what the camera will see: half a hundred and more. Where INT8 does not keep the masks, FP16 is taken.
"""

import sys

from edgemask import Model, build

weights, photos, folder = sys.argv[1:]
build(weights, folder, precision="int8", calibration=photos)
with Model(folder) as model:
    proof = model.bundle.manifest.verification
    print(f"{model}: IoU with the trained network {proof['iou_mean']:.4f}, worst {proof['iou_worst']:.4f}")
