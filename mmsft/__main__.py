"""`python -m mmsft`: the command line."""

from mmsft.cli import main

main()
