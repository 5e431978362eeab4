"""Tables, figures and pages of what a run left."""
