"""Where the work of a search is done: in this process, or by several machines."""
