"""An encoder as a sequence of units that can be cut anywhere, and the check that this is so."""
