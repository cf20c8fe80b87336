"""Text and hints to relations: a local language model, or rules, maps subjects to values."""
