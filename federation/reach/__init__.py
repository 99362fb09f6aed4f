"""Whether others can connect to this colony, and the mailboxes that it chooses if they can't."""
