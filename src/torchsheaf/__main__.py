"""`python -m torchsheaf`: the command line."""

from torchsheaf.cli import main

if __name__ == "__main__":
    main()
