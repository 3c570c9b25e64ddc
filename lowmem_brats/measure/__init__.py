"""Volumes of a label map, the diameters of its enhancing lesions, and how both change from one scan to the next."""
