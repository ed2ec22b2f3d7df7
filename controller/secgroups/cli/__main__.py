"""``python -m secgroups.cli`` is ``sgctl``."""

from secgroups.cli.main import main

if __name__ == "__main__":
    main()
