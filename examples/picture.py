"""A picture with its mask over it: python examples/picture.py photo.jpg out.png"""

import sys

import cv2

from edgemask import Model

picture, output = sys.argv[1:]
image = cv2.imread(picture)
with Model("u2netp") as model:
    mask = model(image)  # (H, W) uint8: probability × 255
    cv2.imwrite(output, model.draw(image, mask, mode="overlay", alpha=0.5))
