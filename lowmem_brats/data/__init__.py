"""From files on disk to slices in memory, and back."""
