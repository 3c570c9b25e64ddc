"""From a raw study, DICOM or NIfTI, to a case that `segment` takes."""
