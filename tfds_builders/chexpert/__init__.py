"""CheXpert v1: images, fourteen labels, and the 5x200 set."""
