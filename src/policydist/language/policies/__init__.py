"""Policies: a transformers causal language model, an exact table, a linear map of features."""
