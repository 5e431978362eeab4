"""Which training pairs are probably mismatched, and what would fit better: `mdw mismatches`."""
