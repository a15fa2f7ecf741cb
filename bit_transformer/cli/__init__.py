"""The command `btlm`: parses, calls `service`, prints."""
