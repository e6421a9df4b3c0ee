"""Judges of replies, one small file each. They see what was logged, never a model under test."""
