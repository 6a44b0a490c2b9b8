"""Chest ImaGenome: regions, phrases and findings on MIMIC-CXR images."""
