"""Bytes on disk, drawn a batch at a time: `sources` finds and maps the files, `windows` draws from them."""
