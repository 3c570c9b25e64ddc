"""The preview of a case and the curves of a training."""
