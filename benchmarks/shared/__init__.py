"""What several questions need: bundles, passes over frames, plots, power meters, the environment."""
