"""MS-CXR: phrases and their boxes on MIMIC-CXR images."""
