"""Start the command line. A stop is answered from the first moment on, while the commands are being imported."""

from __future__ import annotations

import sys

from ensemble_assets.common.stopping import STOPPED, end_if_asked, say_stopped, stop_when_asked


def main() -> None:
    """Run the command that this process was started with, and exit with its code."""
    try:
        with stop_when_asked(say_stopped):
            from ensemble_assets.cli.main import main as command_line

            command_line()
    except KeyboardInterrupt:
        say_stopped()
        sys.exit(STOPPED)
    finally:
        end_if_asked()


if __name__ == "__main__":
    main()
