"""Report to flags to hints to relations to records; archives, commands."""
