"""What runs: number formats, losses, one step, recomputation, several processes."""
