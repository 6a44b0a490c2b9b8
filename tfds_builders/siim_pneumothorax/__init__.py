"""SIIM-ACR Pneumothorax: masks from run lengths."""
