"""Policies as distributions: published methods on one core, one command each, one honest verdict each."""

__version__ = "0.1.0"
