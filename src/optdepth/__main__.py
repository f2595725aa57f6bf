"""`python -m optdepth` is `optdepth`."""

from .cli import main

if __name__ == "__main__":
    main()
