"""The outlines of what is in a picture, as JSON: python examples/polygons.py photo.jpg"""

import json
import sys

import cv2

from edgemask import Model

image = cv2.imread(sys.argv[1])
with Model("u2netp") as model:
    mask = model(image)
contours, _ = cv2.findContours((mask >= 128).astype("uint8"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
polygons = [
    cv2.approxPolyDP(contour, 1.0, True)[:, 0].tolist() for contour in contours if cv2.contourArea(contour) >= 25
]
print(json.dumps({"label": model.classes[-1], "polygons": polygons}))  # [[x, y], …] in pixels
