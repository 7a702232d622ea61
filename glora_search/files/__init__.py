"""Files and what they name: reading and writing, checked data, shipped files, classes by their import path."""
