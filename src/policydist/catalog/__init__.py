"""The papers of the library as data: what each adds, its headline result, and whether it is implemented here."""

from policydist.catalog.lookup import FAMILIES, Paper, get, implemented, papers, search

__all__ = ["FAMILIES", "Paper", "get", "implemented", "papers", "search"]
