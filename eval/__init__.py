"""Measures: gold files, metrics, significance."""
