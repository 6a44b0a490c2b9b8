"""TBX11K: tuberculosis boxes and three classes."""
