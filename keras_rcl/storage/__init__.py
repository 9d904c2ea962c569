"""Files on disk: atomic writes, locks, journals, snapshots and output folders."""
