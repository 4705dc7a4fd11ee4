"""`python -m proxy` is the `postern` command."""

from proxy.cli import main

main(prog_name="postern")
