"""Other tools and how they are measured, one file for each way of running them."""
