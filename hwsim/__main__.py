"""``python -m hwsim``, for launchers such as torchrun."""

from hwsim.cli import main

main()
