"""VinDr-CXR: labels and boxes of several readers, fused."""
