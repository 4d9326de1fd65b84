"""`python -m dgmn_cli`, for torchrun."""

from dgmn_cli import main

main()
