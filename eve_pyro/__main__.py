"""``python -m eve_pyro`` is ``eve-pyro``: for launchers, such as torchrun, that start modules."""

from eve_pyro.cli import main

if __name__ == "__main__":
    main()
