"""lowmem-brats: brain tumour segmentation in BraTS MRI inside a memory budget. Importing it never imports torch."""

__version__ = "0.1.0"
