"""Judging responses: answers, selection."""
