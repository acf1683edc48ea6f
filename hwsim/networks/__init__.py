"""Float networks: where they come from, what their checkpoints hold, and the shipped embedded one."""
