"""The executable definition of every unit: specs and their plain NumPy reference.

Nothing here imports another package of the project; the simulator (`hwsim`),
the hardware (`rtl`) and the test benches (`sim_tests`) all import this one.
"""

__version__ = "0.1.0"
