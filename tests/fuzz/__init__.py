"""Whatever another server sends or answers, nothing is a 500, hangs, or is half done."""
