"""Regression discontinuity with distribution-valued outcomes: the numerical parts under ``methods/r3d.py``.

Axis names in the shapes: ``units`` (n), ``quantiles`` (M), ``bandwidths`` (1 or M), ``terms`` (p+1), ``draws`` (B).
Everything is float64 NumPy; the running variable is always centred at the cutoff before it comes here.
"""
