"""Floor 6: supervised updates of a policy: collation, loss, optimizer and schedule."""
