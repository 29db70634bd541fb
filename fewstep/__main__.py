"""`python -m fewstep` is the command line."""

from __future__ import annotations

from fewstep.pipeline.cli import main

if __name__ == "__main__":
    main()
