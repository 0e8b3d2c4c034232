"""Judging responses: answers, steps, votes, selection, and how well step scores judge."""
