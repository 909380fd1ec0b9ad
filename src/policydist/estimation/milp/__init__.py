"""Distributions of mixed-integer programs, strong-branching data, learned branching and its evaluation."""
