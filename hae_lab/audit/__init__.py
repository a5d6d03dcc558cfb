"""The paper, audited: its tables, figures, measurements and claims. Reads and writes a clone of the repository."""
