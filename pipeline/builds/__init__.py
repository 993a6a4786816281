"""What is made on first use: a bundle for the name of a network, a plan for this GPU. The command calls it."""
