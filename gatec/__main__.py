"""`python -m gatec` is the command line."""

from gatec.cli import main

main()
