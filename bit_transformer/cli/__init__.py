"""The command `btlm`: parses arguments, calls `service`, prints results."""
