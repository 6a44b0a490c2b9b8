"""Object-CXR: foreign objects as boxes and masks."""
