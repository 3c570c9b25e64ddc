"""What a step costs in bytes, what may run in a budget, and what was used."""
