"""Triton's model repository: layout and configuration (pure), the record, and where the directories are."""
