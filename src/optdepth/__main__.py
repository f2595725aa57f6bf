"""`python -m optdepth` is `optdepth`."""

from .cli import main

main()
