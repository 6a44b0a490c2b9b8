"""NIH ChestX-ray14: fourteen labels, boxes, the official test set."""
