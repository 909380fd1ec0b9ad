"""Claim modules made up for the tests of the runner."""
