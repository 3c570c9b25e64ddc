"""Count the bytes of a step, plan what fits into a budget, and measure what was used."""
