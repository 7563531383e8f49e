"""`python -m example_app`: the shop and, unless real credentials are there, the OTPLESS emulator."""

import sys

if __name__ == "__main__":
    try:
        from example_app.demo import main

        sys.exit(main())
    except KeyboardInterrupt:  # while it was still starting
        sys.exit(0)
