"""Indiana University chest X-rays (Open-i): images with reports."""
