"""Regression on outcomes that are often zero and else heavy-tailed: columns, networks, laws, metrics."""
