"""`python -m bit_transformer.server`."""

from bit_transformer.server import main

main()
