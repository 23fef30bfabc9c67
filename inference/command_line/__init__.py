"""The ``ember`` command: words and files in, a report, files and pictures out."""
