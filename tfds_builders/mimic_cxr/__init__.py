"""MIMIC-CXR: images (JPG or DICOM), reports, labels and the official split, from the PhysioNet folders."""
