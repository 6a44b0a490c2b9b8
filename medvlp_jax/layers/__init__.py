"""Layers that two or more encoders or methods share."""
