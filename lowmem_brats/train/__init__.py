"""A training, from labelled cases to a set of weights."""
