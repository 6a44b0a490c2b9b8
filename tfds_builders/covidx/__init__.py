"""COVIDx: label lists of a version, images from many sources."""
