"""Tables, figures and the static HTML report of runs and claims."""
