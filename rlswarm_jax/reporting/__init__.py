"""From a folder of results to what a person reads: tables, plots, the ledger, and figures in documents."""
