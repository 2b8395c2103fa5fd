"""``python -m ensemble_assets.cli``: the same as the ``ensemble-assets`` command."""

from ensemble_assets.cli.main import main

main()
