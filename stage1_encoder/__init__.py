"""Text to flags: which entity keys does a report state as present?"""
