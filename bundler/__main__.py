"""Start-up for ``python -m bundler`` and the console script."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the guard that tells it in one line instead of a traceback
    sys.exit("airgap-sync needs Python 3.11 or newer; this is %d.%d" % sys.version_info[:2])  # noqa: UP031


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from bundler.cli.main import run  # noqa: PLC0415 - only after the version check
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
