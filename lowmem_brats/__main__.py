"""`python -m lowmem_brats`, and the console script."""

from lowmem_brats.cli import main

if __name__ == "__main__":
    main()
