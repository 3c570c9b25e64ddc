"""One case, from its files to its label map."""
