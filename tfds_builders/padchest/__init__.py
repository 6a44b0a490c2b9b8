"""PadChest: images with Spanish reports and labels."""
