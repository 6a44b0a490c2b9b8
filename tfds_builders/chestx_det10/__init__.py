"""ChestX-Det and ChestX-Det10: boxes, and polygons, on NIH images."""
