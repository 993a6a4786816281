"""The gate: the frames it judges on, the trained network as reference, and what is said of the result."""
