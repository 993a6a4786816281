"""What this machine is: board, driver, GPU, and the facts that are asked of it. Engines and the doctor call it."""
