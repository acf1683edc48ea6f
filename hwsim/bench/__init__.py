"""Speed and memory of the executors, measured against what users would run instead: ``hwsim bench``."""
