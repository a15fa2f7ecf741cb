"""What a filter leaves: files that grow and can be taken up again, what was counted, a report."""
