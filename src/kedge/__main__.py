"""`python -m kedge` is the command `kedge`."""

from kedge.cli import main

main()
