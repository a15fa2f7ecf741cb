"""`python -m bit_transformer.cli` is `btlm`."""

from bit_transformer.cli.main import main

main()
