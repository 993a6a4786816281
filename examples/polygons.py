"""The outlines of what is in a picture, as JSON: python examples/polygons.py photo.jpg"""

import json
import sys

import cv2

from edgemask import Model

image = cv2.imread(sys.argv[1])
with Model("u2netp") as model:
    regions = model.regions(model(image))
polygons = [
    region.polygon().tolist() for region in regions
]  # or region.rle(), region.yolo(), region.xywh, region.mask()
print(json.dumps({"label": model.classes[-1], "polygons": polygons}))  # [[x, y], …] in pixels
