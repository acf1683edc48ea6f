"""Speed and memory of the executors, measured against what users would run instead: ``hwsim bench``."""

# How threads of OpenMP, which PyTorch has, wait in our commands, but in the benchmark: the variable and its value.
WAITING = ("OMP_WAIT_POLICY", "PASSIVE")
