"""Where a file is surprising, byte by byte; what its parts are; which of them are damaged."""
