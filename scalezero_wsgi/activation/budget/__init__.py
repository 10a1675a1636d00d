"""Keep what runs within a budget: how many functions at once, and how much memory. See "Budgets" in
``ARCHITECTURE.md``."""
