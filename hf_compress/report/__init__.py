"""Tables and pictures, drawn from records only."""
