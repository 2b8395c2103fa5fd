"""Start the command line with ``python -m ensemble_assets.cli``."""

from ensemble_assets.cli.main import main

main()
