"""Maps of surprise, as people and other tools read them: a page, tables, a picture, bookmarks."""
