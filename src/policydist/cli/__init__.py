"""The ``policydist`` command."""
