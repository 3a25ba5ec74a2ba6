"""`python -m ckptforge` is the command line."""

from ckptforge.cli import main

main()
