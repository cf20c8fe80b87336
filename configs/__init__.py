"""What is extracted: the task files, the words all layers share, and the modules that read and check them."""
