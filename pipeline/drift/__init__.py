"""Whether a live picture is of the kind that the bundle was verified on: what is measured, how far it is, and who is told."""
