"""Verifiable tasks: procedural ones for the embedded model, reasoning-gym, and the user's own data."""
