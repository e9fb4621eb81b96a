"""The newsletter's people: their addresses, the links that are mailed to them, and what is written for them."""
