"""`python -m seglearn`, which is what `torchrun -m seglearn` starts."""

from seglearn.cli import main

if __name__ == "__main__":
    main()
